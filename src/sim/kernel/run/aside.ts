/**
 * Instructions of this thread that are in the middle, while somebody is called. What they have computed so far is in
 * variables that all processors use, so no other may run now.
 */
let inMiddle = 0;

export const isAside = (): boolean => inMiddle > 0;

export function aside<T>(call: () => T): T {
  inMiddle++;
  try {
    return call();
  } finally {
    inMiddle--;
  }
}
