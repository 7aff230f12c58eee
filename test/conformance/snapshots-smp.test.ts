/** Several vCPUs, each with a state of its own, over one memory: together they go on as if nothing had been. */
import { expect } from 'vitest';
import { Exit, exitName, type GuestMemory, type Hypervisor, type Vcpu, type Vm } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { captureState, parseState, RestoredMachine } from '../../src/vmm/snapshot/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { conformance } from '../support/suite.ts';

const MEMORY = 0x4_0000;
const CODE = 0x1000;
const TABLES = 0x9000;
/** Not in their order, and with gaps: an id is no place in a list. */
const IDS = [2, 0, 5];
const TURNS = 60;

/** Each mixes what it has with what all of them have, and says what came of it. */
const { code } = guest(
  64,
  `
48 0f af c3             | again: imul rax, rbx
48 03 04 25 00 80 00 00 |        add rax, [0x8000]
48 31 04 25 00 80 00 00 |        xor [0x8000], rax
e7 50                   |        out 0x50, eax
eb e8                   |        jmp again
`,
);

interface Guest {
  readonly vm: Vm;
  readonly vcpus: readonly Vcpu[];
  readonly memory: GuestMemory;
  readonly opened: readonly Disposable[];
}

function boot(hv: Hypervisor): Guest {
  const vm = hv.createVm();
  const memory = vm.allocate(MEMORY);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  memory.write(CODE, code);
  const vcpus = IDS.map((id, i) => {
    const vcpu = vm.createVcpu(id);
    vcpu.setCpuid2(hv.getSupportedCpuid());
    enterLongMode(vcpu, memory, { tables: TABLES });
    vcpu.setRegs({ rip: CODE, rflags: 2, rax: 3 + id, rbx: 0x9e37_79b9 + 2 * i });
    return vcpu;
  });
  return { vm, vcpus, memory, opened: [...vcpus, vm, memory] };
}

function close({ opened }: Guest): void {
  for (const object of opened) object[Symbol.dispose]();
}

/** To another VM; the vCPUs may be captured in any order. */
function moved(hv: Hypervisor, here: Guest, order: readonly Vcpu[]): Guest {
  const { state, memories } = captureState(hv, here.vm, order);
  expect(state.vcpus.map(({ id }) => id).toSorted()).toEqual(IDS.toSorted());
  const machine = new RestoredMachine(hv, parseState(JSON.parse(JSON.stringify(state))));
  const [memory] = machine.memories;
  memory!.write(0, memories[0]!.read(0, MEMORY));
  const places = state.vcpus.map(({ id }) => id);
  const vcpus = IDS.map((id) => machine.vcpus[places.indexOf(id)]!);
  close(here);
  machine.begin();
  return { vm: machine.vm, vcpus, memory: memory!, opened: [machine] };
}

/** What the vCPUs say, one after the other, in so many turns; `moves` says after which of them they move. */
function said(hv: Hypervisor, moves: (turn: number) => boolean): number[] {
  const words: number[] = [];
  let here = boot(hv);
  try {
    for (let turn = 0; turn < TURNS; turn++) {
      const vcpu = here.vcpus[turn % IDS.length]!;
      expect(exitName(vcpu.run(DEADLINE_MS))).toBe(exitName(Exit.IO));
      words.push(vcpu.io.value);
      if (moves(turn)) here = moved(hv, here, turn % 2 === 0 ? here.vcpus : here.vcpus.toReversed());
    }
  } finally {
    close(here);
  }
  return words;
}

conformance('snapshots of several vCPUs', ({ needs }) => {
  const it = needs('immediate-exit');

  it('a guest with three vCPUs that moves after each of its exits computes what it would have', (hv) => {
    const undisturbed = said(hv, () => false);
    expect(new Set(undisturbed).size).toBe(TURNS);
    expect(said(hv, () => true)).toEqual(undisturbed);
  });

  it('it does, too, when it moves while some of its vCPUs have not begun', (hv) => {
    const undisturbed = said(hv, () => false);
    expect(said(hv, (turn) => turn === 0 || turn === 20)).toEqual(undisturbed);
  });
});
