// From the start of a process to its guest's first exit, beside a process that does nothing.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Exit } from '../../dist/index.js';
import { expect, median, packageEntry } from '../support.mjs';
import { turn } from './children.mjs';

const MOST_MS = 100;

export async function cold({ folder, rounds }) {
  const script = join(folder, 'cold.mjs');
  writeFileSync(
    script,
    `import { enterRealMode, openHypervisor } from ${JSON.stringify(packageEntry)};
const vm = openHypervisor({ backend: 'sim' }).createVm();
const ram = vm.allocate(65536);
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
ram.write(0x1000, Uint8Array.of(0xe6, 0x80, 0xf4));
const vcpu = vm.createVcpu(0);
enterRealMode(vcpu);
vcpu.setRegs({ rip: 0x1000, rflags: 2 });
process.exit(vcpu.run(1000) === ${Exit.IO} ? 0 : 1);
`,
  );
  const took = (args) => {
    const start = performance.now();
    expect(spawnSync(process.execPath, args).status === 0, 'a cold start');
    return performance.now() - start;
  };
  const differences = [];
  for (let i = 0; i < 2 * rounds + 1; i++) {
    await turn();
    differences.push(-took(['-e', '0']) + took([script]));
  }
  const more = median(differences);
  return {
    text: `a guest's first exit comes ${more.toFixed(0)} ms after node -e 0 has ended`,
    target: `at most ${MOST_MS} ms`,
    met: more <= MOST_MS,
    figures: { more },
  };
}
