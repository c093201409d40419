// Bytes -> server-sent events.   in: a stream of bytes   out: the data of each event
// who calls: api.js
//
// A read may end within a character, a line or an event, so what is incomplete waits for the next.

const MAX_LINE_LENGTH = 1 << 22; // a frame is a few hundred characters; without end it is no frame

/** Yields the data of each event, its lines joined; comments and other fields are passed over. */
export async function* serverSentEvents(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? `${decoder.decode()}\n\n` : decoder.decode(value, { stream: true });
      if (rest.length > MAX_LINE_LENGTH) throw new Error("a line of the stream does not end");
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // who reads no further lets the server know
  }
}
