// Assembles the guests that are written as listings (src/vmm/guest.ts): every guest(BITS, `...`) in the sources and documents.
// Fills in the bytes on the left of each `|`; with --check it only compares, and names what differs.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const check = process.argv.includes('--check');
const GUEST = /\bguest\(\s*(16|32|64),\s*(?:\/\*.*?\*\/\s*)?`([^`]*)`/g;

const folders = ['src', 'test', 'examples', 'bench', 'docs'].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)),
);
const files = ['README.md', ...folders].filter((name) => /\.(ts|mjs|md)$/.test(name));

/** The bytes of each source line, by GNU as's own listing. */
function assemble(bits, lines, where) {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-guest-'));
  try {
    const source = join(folder, 'guest.s');
    writeFileSync(source, `.intel_syntax noprefix\n.code${bits}\n${lines.join('\n')}\n`);
    const args = [
      bits === '64' ? '--64' : '--32',
      '-aln',
      '--listing-lhs-width=8',
      '--listing-cont-lines=64',
    ];
    const listing = execFileSync('as', [...args, '-o', join(folder, 'guest.o'), source], {
      encoding: 'utf8',
    });
    const bytes = lines.map(() => '');
    for (const line of listing.split('\n')) {
      // "   3 0000 BAF803   <tab>mov dx, 0x3f8"; continuation lines repeat the number and have no source.
      const match = /^\s*(\d+) [0-9a-f]{4} ((?:[0-9A-F]{2,8} ?)+)/.exec(line);
      if (match) bytes[Number(match[1]) - 3] += match[2].replaceAll(' ', '').toLowerCase();
    }
    const object = join(folder, 'guest.bin');
    execFileSync('objcopy', ['-O', 'binary', '-j', '.text', join(folder, 'guest.o'), object]);
    const linked = readFileSync(object).toString('hex');
    if (linked !== bytes.join('')) {
      throw new Error(
        `${where}: as's listing and its object differ: does the code use a label's absolute address?`,
      );
    }
    return bytes.map((hex) => (hex.match(/../g) ?? []).join(' '));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

let guests = 0;
let wrong = 0;
for (const file of files) {
  const text = readFileSync(join(root, file), 'utf8');
  const made = text.replace(GUEST, (whole, bits, listing) => {
    guests++;
    const where = `${file}:${text.slice(0, text.indexOf(whole)).split('\n').length}`;
    const lines = listing
      .replace(/^\n/, '')
      .replace(/\n[ ]*$/, '')
      .split('\n');
    const indent = /^ */.exec(lines.find((line) => line.includes('|')) ?? '')[0];
    const sources = lines.map((line) => (line.includes('|') ? line.slice(line.indexOf('|') + 1) : line));
    const bytes = assemble(bits, sources, where);
    const width = Math.max(...bytes.map((hex) => hex.length));
    const out = sources.map((source, i) => `${indent}${bytes[i].padEnd(width)} |${source}`.trimEnd());
    const tail = /\n[ ]*$/.exec(listing)?.[0] ?? '\n';
    const fresh = whole.replace(listing, () => `\n${out.join('\n')}${tail}`);
    if (fresh.replace(/ /g, '') !== whole.replace(/ /g, '')) {
      wrong++;
      if (check) process.stderr.write(`${where}: the bytes are not those of the source\n`);
    }
    return fresh;
  });
  if (!check && made !== text) writeFileSync(join(root, file), made);
}
process.stdout.write(`${guests} guests, ${wrong} ${check ? 'wrong' : 'rewritten'}\n`);
process.exitCode = check && wrong > 0 ? 1 : 0;
