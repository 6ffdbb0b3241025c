// What put-for-ever.ts puts for the nth time, and store.contract.ts expects: the number, over and over, so that no two may be mixed unseen.

export function victim(n: number, sizeBytes: number): Buffer {
  const four = Buffer.alloc(4);
  four.writeUInt32BE(n);
  return Buffer.alloc(sizeBytes).fill(four);
}
