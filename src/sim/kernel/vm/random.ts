/** Numbers that a seed decides: a Weyl sequence, mixed as MurmurHash3 mixes 32 bits. */
export class Random {
  #state: number;

  /** @param seed a whole number from 0 to 2^53 - 1 */
  constructor(seed: number) {
    this.#state = (seed >>> 0) ^ Math.imul(Math.floor(seed / 2 ** 32), 0x85eb_ca6b);
  }

  /** Of a VM's vCPUs, each its own. */
  static ofVcpu(seed: number, id: number): Random {
    return new Random((seed + (id + 1) * 0x1_0000_0001) % 2 ** 53);
  }

  /** A whole number below `limit`, which is at most 2^32. */
  below(limit: number): number {
    this.#state = (this.#state + 0x9e37_79b9) | 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85eb_ca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
    return Math.floor((((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32) * limit);
  }
}
