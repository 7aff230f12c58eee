// Assembles the guests that are written as listings (src/vmm/guest.ts): every guest(BITS, `...`) in the sources and documents.
// Fills in the bytes on the left of each `|`; with --check it only compares, and names what differs.
import { execFileSync, spawnSync } from 'node:child_process';
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
const scripts = readdirSync(join(root, 'scripts')).map((name) => join('scripts', name));
const files = ['README.md', ...scripts, ...folders].filter((name) => /\.(ts|mjs|md)$/.test(name));

/** Every listing: where it stands, its bits, and its source lines. */
const listings = [];
/** The bytes of each line of a listing, by its number. */
const assembled = new Map();

/** A statement: its label, its mnemonic, and what follows. */
const STATEMENT = /^(\s*)(?:([A-Za-z_]\w*):)?(\s*\S*)(.*)$/;

/** Labels are a listing's own: those of another may have the same name, and an instruction too. */
function apart(lines, number) {
  const statements = lines.map((line) => line.split(';').map((part) => STATEMENT.exec(part)));
  const labels = statements.flat().flatMap(([, , label]) => label ?? []);
  if (labels.length === 0) return lines;
  const name = new RegExp(`\\b(?:${labels.join('|')})\\b`, 'g');
  const renamed = (text) => text.replace(name, (label) => `guest${number}_${label}`);
  return statements.map((parts) =>
    parts
      .map(([, space, label, mnemonic, rest]) => {
        return `${space}${label === undefined ? '' : `${renamed(label)}:`}${mnemonic}${renamed(rest)}`;
      })
      .join(';'),
  );
}

/**
 * The bytes of each source line, by GNU as's own listing: all listings of one format of objects at once, each in a section of
 * its own, for starting the assembler takes longer than its work.
 */
function assemble(format, numbers) {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-guest-'));
  try {
    const lines = ['.intel_syntax noprefix'];
    const owners = [undefined];
    for (const number of numbers) {
      const { bits, sources } = listings[number];
      lines.push(`.section .guest${number},"ax"`, `.code${bits}`);
      owners.push(undefined, undefined);
      apart(sources, number).forEach((line, i) => {
        lines.push(line);
        owners.push({ number, line: i });
      });
      assembled.set(
        number,
        sources.map(() => ''),
      );
    }
    const source = join(folder, 'guests.s');
    const object = join(folder, 'guests.o');
    writeFileSync(source, `${lines.join('\n')}\n`);
    const args = [format, '-aln', '--listing-lhs-width=8', '--listing-cont-lines=64', '-o', object, source];
    const { status, stdout, stderr } = spawnSync('as', args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
    if (status !== 0) throw new Error(located(stderr, owners));
    for (const line of stdout.split('\n')) {
      // "   3 0000 BAF803   <tab>mov dx, 0x3f8"; continuation lines repeat the number and have no source.
      const match = /^\s*(\d+) [0-9a-f]{4} ((?:[0-9A-F]{2,8} ?)+)/.exec(line);
      const owner = match && owners[Number(match[1]) - 1];
      if (owner) assembled.get(owner.number)[owner.line] += match[2].replaceAll(' ', '').toLowerCase();
    }
    const linked = contentsOf(object);
    for (const number of numbers) {
      if ((linked.get(`.guest${number}`) ?? '') === assembled.get(number).join('')) continue;
      throw new Error(
        `${listings[number].where}: as's listing and its object differ: does the code use a label's absolute address?`,
      );
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What the assembler says of its input's lines, said of the files that they come from. */
const located = (text, owners) =>
  text.replace(/^\S+?:(\d+): /gm, (_, line) => {
    const owner = owners[Number(line) - 1];
    return owner === undefined ? '' : `${listings[owner.number].where}, line ${owner.line + 1}: `;
  });

/** The bytes of each section of an object, in hexadecimal. */
function contentsOf(object) {
  const sections = new Map();
  let name;
  for (const line of execFileSync('objdump', ['-s', object], { encoding: 'utf8', maxBuffer: 2 ** 28 }).split(
    '\n',
  )) {
    name = /^Contents of section (.*):$/.exec(line)?.[1] ?? name;
    const bytes = /^ [0-9a-f]+ ((?:[0-9a-f]{2,8} ){1,4})/.exec(line)?.[1];
    if (bytes) sections.set(name, (sections.get(name) ?? '') + bytes.replaceAll(' ', ''));
  }
  return sections;
}

/** Calls with each listing of the files; what it gives takes the listing's place. */
function eachListing(use) {
  let number = 0;
  return files.map((file) => {
    const text = readFileSync(join(root, file), 'utf8');
    const made = text.replace(GUEST, (whole, bits, listing, at) =>
      use({ file, text, whole, bits, listing, at }, number++),
    );
    return { file, text, made };
  });
}

const linesOf = (listing) =>
  listing
    .replace(/^\n/, '')
    .replace(/\n[ ]*$/, '')
    .split('\n');

eachListing(({ file, text, whole, bits, listing, at }) => {
  const sources = linesOf(listing).map((line) =>
    line.includes('|') ? line.slice(line.indexOf('|') + 1) : line,
  );
  listings.push({ where: `${file}:${text.slice(0, at).split('\n').length}`, bits, sources });
  return whole;
});
const numbers = [...listings.keys()];
try {
  assemble(
    '--32',
    numbers.filter((number) => listings[number].bits !== '64'),
  );
  assemble(
    '--64',
    numbers.filter((number) => listings[number].bits === '64'),
  );
} catch (error) {
  process.stderr.write(`guests: ${error.message}\n`);
  process.exit(1);
}

let wrong = 0;
const rewritten = eachListing(({ whole, listing }, number) => {
  const { where, sources } = listings[number];
  const lines = linesOf(listing);
  const indent = /^ */.exec(lines.find((line) => line.includes('|')) ?? '')[0];
  const bytes = assembled.get(number).map((hex) => (hex.match(/../g) ?? []).join(' '));
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
if (!check)
  for (const { file, text, made } of rewritten) if (made !== text) writeFileSync(join(root, file), made);
process.stdout.write(`${listings.length} guests, ${wrong} ${check ? 'wrong' : 'rewritten'}\n`);
process.exitCode = check && wrong > 0 ? 1 : 0;
