// By how much the event loop's timers are late while a guest runs flat out beside it, and while none does.
import { boot, exiting, read, spinning } from './guests.mjs';

const WINDOW_MS = 1000;
const TARGET_MS = 5;

/** A timer of a millisecond again and again: by how many milliseconds each was late. */
const lateness = (ms) =>
  new Promise((done) => {
    const late = [];
    const end = performance.now() + ms;
    let due = 0;
    const arm = () => {
      due = performance.now() + 1;
      setTimeout(fire, 1);
    };
    const fire = () => {
      const now = performance.now();
      late.push(now - due);
      if (now < end) arm();
      else done(late);
    };
    arm();
  });

function guestOf(backend, code) {
  const { vcpu, close } = boot(backend, code);
  const handler = {
    handle(_, exit) {
      read(vcpu, exit);
      return true;
    },
  };
  let ended;
  return {
    async window() {
      ended ??= vcpu.start([handler]).then(close);
      const late = await lateness(WINDOW_MS);
      await vcpu.pause();
      return late;
    },
    resume: () => ended && vcpu.resume(),
    async end() {
      vcpu.stop();
      await ended;
    },
  };
}

export async function delay({ backend, peer, seconds, progress }) {
  const guests = { spins: guestOf(backend, spinning), handoff: guestOf(backend, exiting) };
  const one = (guest) => () => {
    guest.resume();
    return guest.window();
  };
  const inC = (mode) => async () => peer.samples('delay', mode, WINDOW_MS).map((ns) => ns / 1e6);
  const kinds = {
    idle: { what: 'no guest', window: () => lateness(WINDOW_MS) },
    spins: { what: 'a guest that spins, started', window: one(guests.spins) },
    handoff: { what: 'a guest that exits, started', window: one(guests.handoff) },
    ...(peer && {
      'idle, C': { what: '  C, no guest', window: inC('idle') },
      'spins, C': { what: '  C, a guest that spins', window: inC('spins') },
      'handoff, C': { what: '  C, a guest that exits', window: inC('handoff') },
    }),
  };
  const windows = Math.ceil((seconds * 1000) / WINDOW_MS);
  const found = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]));
  for (let i = 0; i < windows; i++) {
    progress(`delay: ${i} of ${windows} s of each`);
    for (const [name, { window }] of Object.entries(kinds)) found[name].push(...(await window()));
  }
  for (const guest of Object.values(guests)) await guest.end();

  const figures = {};
  const lines = [`  ${''.padEnd(44)}   median     99 %   99.9 %    worst (ms late, of a timer of 1 ms)`];
  for (const [name, { what }] of Object.entries(kinds)) {
    const sorted = found[name].sort((a, b) => a - b);
    const at = (part) => sorted[Math.floor(part * (sorted.length - 1))];
    figures[name] = { median: at(0.5), p99: at(0.99), p999: at(0.999), worst: at(1) };
    const parts = Object.values(figures[name]).map((ms) => ms.toFixed(2).padStart(8));
    const more = at(0.999) - figures.idle.p999;
    const judged = name === 'spins' || name === 'handoff';
    const target = judged
      ? `   99.9 %: ${more >= 0 ? '+' : ''}${more.toFixed(2)} ms; target at most +5 ms: ${more <= TARGET_MS ? 'met' : 'MISSED'}`
      : '';
    lines.push(`  ${what.padEnd(44)} ${parts.join(' ')}${target}`);
  }
  return { text: ['', ...lines].join('\n'), figures };
}
