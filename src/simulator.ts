/**
 * vmexit/sim: what runs without Node, in a page or a worker of a browser among others. The simulator, and the VMM
 * layer above it; no file, no socket, no KVM. In Node, `vmexit` has all of this and more.
 */
import { object } from './hypervisor/args.ts';
import { Hypervisor } from './hypervisor/hypervisor.ts';
import { loadDecoder } from './sim/decoder.ts';
import { type SimulatedHost, simBackend } from './sim/index.ts';

export * from './core.ts';
export type { SimulatedHost } from './sim/index.ts';

/**
 * Opens the simulator. The first call in a thread loads its decoder, some 300 KB of compressed WebAssembly that
 * `vmexit/sim` brings along.
 *
 * A page needs no cross-origin isolation for it: the simulator's memory is shared WebAssembly memory, which only
 * `postMessage()` refuses without. A Content-Security-Policy must allow `'wasm-unsafe-eval'`.
 * @param host what the simulated host is told to be
 * @throws TypeError, RangeError ERR_KVM_INVALID_ARG; a CompileError where WebAssembly is not allowed
 */
export async function openSimulator(host: SimulatedHost = {}): Promise<Hypervisor> {
  object('host', host);
  const iced = await loadDecoder();
  return new Hypervisor(simBackend({ ...host, iced: () => iced }));
}
