// Server-sent events, as they come in pieces.

/** Takes pieces of a stream, and gives what its events carry. */
export class EventReader {
  private rest = "";
  private data: string[] = [];

  read(text: string): string[] {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.take(line.replace(/\r$/, "")));
  }

  private take(line: string): string[] {
    if (line.startsWith("data:")) {
      this.data.push(line.slice(5).replace(/^ /, ""));
      return [];
    }
    if (line !== "" || this.data.length === 0) return [];
    const event = this.data.join("\n");
    this.data = [];
    return [event];
  }
}
