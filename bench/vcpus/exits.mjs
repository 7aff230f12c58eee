// What an exit costs by each way to run a vCPU, and how many two vCPUs have beside one.
import { expect, median, nanoseconds } from '../support.mjs';
import { boot, exiting, Remote, read, synchronous } from './guests.mjs';

// Each of these runs so many exits of a vCPU.

async function started(vcpu, count) {
  let left = count;
  const handler = {
    handle(_, exit) {
      read(vcpu, exit);
      return --left > 0;
    },
  };
  const start = process.hrtime.bigint();
  await vcpu.start([handler]);
  const ns = nanoseconds(start, count);
  expect(left === 0);
  return ns;
}

async function awaited(vcpu, count) {
  const start = process.hrtime.bigint();
  for (let i = 0; i < count; i++) read(vcpu, await vcpu.runAsync());
  return nanoseconds(start, count);
}

async function iterated(vcpu, count) {
  let left = count;
  const start = process.hrtime.bigint();
  for await (const exit of vcpu) {
    read(vcpu, exit);
    if (--left === 0) break;
  }
  return nanoseconds(start, count);
}

const micro = (ns) => `${(ns / 1000).toFixed(1).padStart(8)} us`;
const verdict = (met, wanted) => `; target at most ${wanted}: ${met ? 'met' : 'MISSED'}`;
/** Of rounds, each a pair: the median of the pairs' ratios. */
const ratioOf = (some, others) => median(some.map((ns, i) => ns / others[i]));
const moreOf = (some, others) => median(some.map((ns, i) => ns - others[i]));

/** V8 compiles what has run some thousand times: so many exits of each way come before the first that counts. */
const WARM_UP = 10_000;

/** Each way once a round, in turns. Gives the rounds of each. */
async function rounds(ways, count, number, progress) {
  const found = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
  for (let round = -Math.ceil(WARM_UP / count); round < number; round++) {
    progress(round < 0 ? 'warming up' : `round ${round + 1} of ${number}`);
    for (const [name, way] of Object.entries(ways)) {
      if (round < 0 && way.isPeer) continue;
      const ns = await way();
      if (round >= 0) found[name].push(ns);
    }
  }
  return found;
}

/** Lines of a report, and its figures. */
class Table {
  lines = [];
  figures = {};
  add(name, what, ns, beside = '') {
    this.lines.push(`  ${what.padEnd(46)} ${micro(ns)}   ${beside}`);
    this.figures[name] = ns;
  }
  get result() {
    return { text: ['', ...this.lines].join('\n'), figures: this.figures };
  }
}

/** An exit, by each way. */
export async function exits({ backend, count, peer, judged, rounds: number, progress }) {
  const guests = [boot(backend, exiting), boot(backend, exiting), boot(backend, exiting)];
  const [{ vcpu: own }, { vcpu: asynchronous }, { vcpu: theirs }] = guests;
  const remote = new Remote(backend, theirs);
  const found = await rounds(
    {
      ...(peer && { c: peer.way('sync', count), handoff: peer.way('handoff', 1, count) }),
      run: () => synchronous(own, count),
      start: () => started(asynchronous, count),
      async: () => awaited(asynchronous, count),
      iterated: () => iterated(asynchronous, count),
      worker: () => remote.exits(count),
    },
    count,
    number,
    progress,
  );
  await remote.end();
  for (const { close } of guests) close();

  const table = new Table();
  const { c, handoff, run, start, worker } = found;
  const over = (name) => `+${(moreOf(found[name], run) / 1000).toFixed(1)} us`;
  const besideC = (name) => (peer ? `, ${ratioOf(found[name], handoff).toFixed(3)} of C's hand-off` : '');
  if (peer) {
    table.add('c', 'C, on the first thread', median(c));
    table.add(
      'handoff',
      'C, handed to the first thread',
      median(handoff),
      `+${(moreOf(handoff, c) / 1000).toFixed(1)} us`,
    );
  }
  const beside = peer ? `${ratioOf(run, c).toFixed(3)} of C's` : '';
  table.add('run', 'run()', median(run), beside);
  const judges = {
    kvm: () => verdict(moreOf(start, run) <= 15_000, '+15 us'),
    lab: () => verdict(ratioOf(start, handoff) <= 1.15, '1.150'),
  };
  table.add(
    'start',
    'start(handlers)',
    median(start),
    `${over('start')}${besideC('start')}${judges[judged]?.() ?? ''}`,
  );
  table.add('async', 'runAsync()', median(found.async), `${over('async')}${besideC('async')}`);
  table.add('iterated', 'for await', median(found.iterated), `${over('iterated')}${besideC('iterated')}`);
  const ratio = ratioOf(worker, run);
  table.add(
    'worker',
    'run() in a worker',
    median(worker),
    `${ratio.toFixed(3)} of run()${verdict(ratio <= 1.05, '1.050')}`,
  );
  return table.result;
}

/** Exits of two vCPUs of a VM at once, beside those of one. */
export async function two({ backend, count, peer, judged, rounds: number, progress }) {
  const pair = boot(backend, exiting, 2);
  const theirs = boot(backend, exiting, 2);
  const remotes = theirs.vcpus.map((vcpu) => new Remote(backend, vcpu));
  /** Nanoseconds that an exit of each takes, while the others have theirs. */
  const together = async (runs) => {
    const start = process.hrtime.bigint();
    await Promise.all(runs);
    return nanoseconds(start, count);
  };
  const found = await rounds(
    {
      ...(peer && {
        c1: peer.way('threads', 1, count),
        c2: peer.way('threads', 2, count),
        handoff1: peer.way('handoff', 1, count),
        handoff2: peer.way('handoff', 2, count),
      }),
      worker1: () => together([remotes[0].exits(count)]),
      worker2: () => together(remotes.map((remote) => remote.exits(count))),
      start1: () => together([started(pair.vcpu, count)]),
      start2: () => together(pair.vcpus.map((vcpu) => started(vcpu, count))),
    },
    count,
    number,
    progress,
  );
  for (const remote of remotes) await remote.end();
  for (const { close } of [pair, theirs]) close();

  const table = new Table();
  const row = (name, what, target) => {
    const times = 2 * ratioOf(found[`${name}1`], found[`${name}2`]);
    const met = times >= 1.8 ? 'met' : 'MISSED';
    const wanted = target ? `; target at least 1.800 on two processors: ${met}` : '';
    const rates = [1, 2].map((n) => Math.round((n * 1e9) / median(found[`${name}${n}`])));
    table.lines.push(
      `  ${what.padEnd(46)} ${rates.join(' and ').padStart(18)} exits/s, ${times.toFixed(3)} times${wanted}`,
    );
    table.figures[name] = { one: rates[0], two: rates[1], times };
  };
  if (peer) {
    row('c', 'C, threads of their own');
    row('handoff', 'C, handed to the first thread');
  }
  row('worker', 'run() in workers', judged === 'kvm');
  row('start', 'start(handlers)', judged === 'kvm');
  return table.result;
}
