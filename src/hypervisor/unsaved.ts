/** What a VM or a vCPU has that no snapshot carries, as a phrase each. */
export class Unsaved extends Set<string> {
  /** That there is such a thing from now on, or none any more. */
  note(what: string, isThere: boolean): void {
    if (isThere) this.add(what);
    else this.delete(what);
  }
}
