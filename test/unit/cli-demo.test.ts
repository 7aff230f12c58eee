import { describe, expect, it } from 'vitest';
import { on, whyNot } from '../support/host.ts';
import { inLab } from '../support/limits.ts';
import { type Ran, scratchFolder, vmexit } from './cli-vmexit.ts';

const scratch = scratchFolder();
const needs = ['private-memory', 'map-gpa-range'] as const;

/** What somebody says in the demo, line by line. */
const saidBy = (who: 'guest' | 'host', { stdout }: Ran): string[] =>
  stdout
    .split('\n')
    .filter((line) => line.startsWith(who.padStart(5)))
    .map((line) => line.slice('guest | '.length));

const section = (title: string, { stdout }: Ran): string =>
  stdout.split('\n\n').find((part) => part.startsWith(title)) ?? '';

describe('vmexit demo', () => {
  /** What it shows where private memory is, on either backend. */
  function expectTheWhole(ran: Ran): void {
    const guest = saidBy('guest', ran);
    const host = saidBy('host', ran);
    expect(guest[0]).toMatch(/^Hello from 64-bit mode!/);
    expect(guest).toContain('I read it back, from page 0x200000: "The treasure is under the old oak."');
    expect(host).toContain(
      'I look into the same page, and what I see is still "Dear host, this page is ours."',
    );
    // The search finds what is there, and does not find what is not.
    expect(host).toContain('I search all 8 MiB that I can see. The note: twice.');
    expect(host).toContain("The guest's secret: not once.");
    expect(guest).toContain('The page is shared again. I read there: "Dear host, this page is ours."');
    expect(host.filter((line) => line.startsWith('A memory fault: '))).toHaveLength(5);
    expect(guest.at(-1)).toMatch(/Goodbye!$/);

    const map = section('Guest memory at the end', ran);
    expect(map).toMatch(/^ {2}0x00210000 {2}#{6} +24 KiB {2}private {2}slot 0: memory and guest_memfd$/m);
    expect(map).toMatch(/^ {2}0x00216000 {2}-{4} +16 KiB {2}shared {3}slot 0: memory and guest_memfd$/m);
    expect(map).toMatch(/^ {2}0x00800000 {2}-{16} +64 KiB {2}shared {3}slot 1: memory$/m);
    expect(map).toMatch(/^ {2}0x00900000 {2}#{4} +16 KiB {2}private {2}slot 2: guest_memfd$/m);
    const exits = section('Exits', ran);
    expect(exits).toMatch(/^ +4 {2}HYPERCALL/m);
    expect(exits).toMatch(/^ +5 {2}MEMORY_FAULT/m);
    const conversions = section('Conversions', ran);
    expect(conversions).toMatch(/^ +2 {2}to private, 68 KiB$/m);
    expect(conversions).toMatch(/^ +6 {2}to shared, 36 KiB$/m);
  }

  it.skipIf(inLab)('shows on the simulator a secret that the guest reads and the host does not find', () => {
    // As on a machine where nothing is installed that the lab needs: it has the most to say then.
    const env = { DPKG_ADMINDIR: scratch.path, VMEXIT_LAB_CACHE: scratch.path };
    const ran = vmexit(['demo', '--backend', 'sim'], { env });
    expect([ran.status, ran.stderr]).toEqual([0, '']);
    expect(ran.stdout).toMatch(/^A guest on the simulator$/m);
    expect(ran.stdout).toMatch(/npx vmexit lab build/);
    expectTheWhole(ran);
    expect(ran.stdout).not.toContain('\x1b');
    for (const line of ran.stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
  });

  on('kvm', ...needs)('shows the same on KVM, where that has private memory', () => {
    const ran = vmexit(['demo', '--backend', 'kvm']);
    expect([ran.status, ran.stderr]).toEqual([0, '']);
    expect(ran.stdout).toMatch(/^A guest on \S+ \S+ KVM$/m);
    expectTheWhole(ran);
  });

  it('shows the whole of it everywhere, and says where, and why not on KVM', () => {
    const ran = vmexit(['demo']);
    expect([ran.status, ran.stderr]).toEqual([0, '']);
    expectTheWhole(ran);
    const reason = whyNot('kvm', ...needs);
    if (reason === undefined) expect(ran.stdout).toMatch(/^A guest on \S+ \S+ KVM$/m);
    else expect(ran.stdout).toMatch(/^A guest on the simulator\nand not on this host's KVM: \S/m);
  });

  it('says what is missing with a KVM that has no private memory', (context) => {
    const reason = whyNot('kvm', ...needs);
    if (whyNot('kvm') !== undefined) return context.skip(reason);
    if (reason === undefined) return context.skip('this host has private memory');
    const ran = vmexit(['demo', '--backend', 'kvm']);
    expect(ran.status).toBe(0);
    expect(ran.stdout).toMatch(/^A guest on \S+ \S+ KVM, without private memory$/m);
    expect(saidBy('host', ran)[0]).toMatch(/"Dear host, this page is ours\."$/);
    expect(saidBy('guest', ran)[1]).toMatch(/"I can read you, says the host\."$/);
    expect(section('Exits', ran)).toMatch(/^ +1 {2}HLT/m);
    expect(section('What is missing here', ran)).toMatch(/^ {2}(private-memory|map-gpa-range): \w/m);
    expect(section('Guest memory at the end', ran)).not.toMatch(/private/);
  });

  it.skipIf(inLab)('uses colours where they are wanted', () => {
    const { stdout } = vmexit(['demo', '--backend', 'sim'], { env: { FORCE_COLOR: '1' } });
    expect(stdout).toContain('\x1b[36mguest\x1b[39m');
  });
});
