/** The examples as a reader runs them: compiled, each in a process of its own, on KVM or where that cannot, simulated. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type Feature, openHypervisor } from '../../src/index.ts';
import { whyNot } from '../support/host.ts';
import { PROGRAM_MS, TEST_MS } from '../support/limits.ts';
import { root } from './cli-vmexit.ts';

const folder = join(root, 'examples');
const names = readdirSync(folder)
  .filter((name) => name.endsWith('.ts'))
  .map((name) => basename(name, '.ts'));

/** What each prints on either backend, what it asks openHypervisor() for, and what it needs of KVM where it has that. */
const examples: {
  readonly [name: string]: {
    readonly needs?: readonly Feature[];
    readonly ofKvm?: readonly Feature[];
    readonly prints: string;
  };
} = {
  'hello-real-mode': { prints: 'Hello!\nThe guest has ended with: hlt\n' },
  'long-mode-mmio': {
    prints: '55\nThe guest has ended: halt. The counter says 55.\nExits: { MMIO: 11, IO: 3, HLT: 1 }\n',
  },
  'private-and-shared': {
    needs: ['private-memory', 'map-gpa-range'],
    prints: `step 1: the page is shared, the host reads 11111111
step 2: the page is private, the host reads 11111111, the guest has read 22222222
step 3: the page is shared, the host reads 11111111, the guest has read 11111111
conversions: 1 to private, 1 to shared
bytes: 4096 to private, 4096 to shared
`,
  },
  'memory-fault-policy': {
    needs: ['private-memory', 'memory-fault'],
    prints: `fault at 0x200000: retry
fault at 0x300000: shared
fault at 0x400000: deny
ERR_KVM_REFUSED: guest memory [0x400000, 0x401000) (now private, no slot) has nothing private behind it: bind a \
guest_memfd, or allow its conversion to shared by a policy; the fault's flags are 0x8
3 faults: 1 mended, 1 refused; the host reads 3
`,
  },
  'post-copy-migration': {
    ofKvm: ['userfaultfd'],
    prints: `source: 500 pages summed up, rax is 375250
destination: the sum is 500500
source: all 2048 pages are there, and the guest here is given up
`,
  },
};

const compiled = (name: string) => join(root, 'dist', 'examples', `${name}.js`);

function isCompiled(name: string): boolean {
  const made = statSync(compiled(name), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  return made >= statSync(join(folder, `${name}.ts`)).mtimeMs;
}

beforeAll(() => {
  if (names.every(isCompiled)) return;
  execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', folder], {
    cwd: root,
  });
});

describe('the examples', () => {
  it('are each tested, of less than a hundred lines, in the table, and saying how it is run', () => {
    const table = readFileSync(join(folder, 'README.md'), 'utf8');
    expect(Object.keys(examples).toSorted()).toEqual(names.toSorted());
    for (const name of names) {
      const source = readFileSync(join(folder, `${name}.ts`), 'utf8');
      expect(source.split('\n').length).toBeLessThan(100);
      expect(table).toContain(`[${name}](${name}.ts)`);
      expect(source).toContain(`npm run setup, then node dist/examples/${name}.js`);
    }
  });

  for (const [name, { needs = [], ofKvm = [], prints }] of Object.entries(examples)) {
    it(`${name} prints what it says`, { timeout: TEST_MS }, (context) => {
      const backend = whyNot('kvm', ...needs) === undefined ? 'kvm' : 'sim';
      using hv = openHypervisor({ needs });
      expect(hv.backend).toBe(backend);
      const lacks = backend === 'kvm' ? whyNot('kvm', ...ofKvm) : undefined;
      context.skip(lacks !== undefined, lacks);
      const output = execFileSync(process.execPath, [compiled(name)], {
        encoding: 'utf8',
        timeout: PROGRAM_MS,
        killSignal: 'SIGKILL',
      });
      expect(output).toBe(prints);
    });
  }
});
