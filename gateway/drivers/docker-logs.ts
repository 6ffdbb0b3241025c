// What an engine's stream of a container's output holds: pieces of stdout and stderr, each behind a head of eight bytes.

export interface LogPiece {
  readonly stream: "stdout" | "stderr";
  readonly bytes: Buffer;
}

/** A piece may be cut in several; nothing is kept but an unfinished head. Ends with its source. */
export async function* demultiplex(source: AsyncIterable<Buffer>): AsyncGenerator<LogPiece> {
  let head = Buffer.alloc(0);
  let stream: LogPiece["stream"] = "stdout";
  let left = 0;
  for await (let chunk of source) {
    // Ends with the chunk: each round takes some of it.
    while (chunk.length > 0) {
      if (left === 0) {
        const taken = chunk.subarray(0, headBytes - head.length);
        head = Buffer.concat([head, taken]);
        chunk = chunk.subarray(taken.length);
        if (head.length < headBytes) continue;
        stream = head[0] === 2 ? "stderr" : "stdout";
        left = head.readUInt32BE(4);
        head = Buffer.alloc(0);
        continue;
      }
      const bytes = chunk.subarray(0, left);
      chunk = chunk.subarray(bytes.length);
      left -= bytes.length;
      yield { stream, bytes };
    }
  }
}

const headBytes = 8;
