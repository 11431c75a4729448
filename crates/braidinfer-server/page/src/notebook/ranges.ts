// Which parts of a notebook's text the model wrote, while the person changes the text.

import type { Range } from "../conversations/conversation";

/** Ranges of `before` as they lie in `after`. What the person put in belongs to no range. */
export function rangesAfterEdit(ranges: Range[], before: string, after: string): Range[] {
  const start = commonStart(before, after);
  const end = commonEnd(before, after, start);
  const [cutEnd, grown] = [before.length - end, after.length - before.length];
  const pieces = ranges.flatMap(([from, to]): Range[] => [
    [from, Math.min(to, start)],
    [Math.max(from, cutEnd) + grown, to + grown],
  ]);
  return joined(pieces.filter(([from, to]) => from < to));
}

export function joined(ranges: Range[]): Range[] {
  const whole: Range[] = [];
  for (const [from, to] of ranges) {
    const last = whole.at(-1);
    if (last && from <= last[1]) whole[whole.length - 1] = [last[0], Math.max(last[1], to)];
    else if (from < to) whole.push([from, to]);
  }
  return whole;
}

/** The text in pieces, each with whether the model wrote it. */
export function piecesOf(text: string, ranges: Range[]): { text: string; isWritten: boolean }[] {
  const pieces: { text: string; isWritten: boolean }[] = [];
  let at = 0;
  for (const [from, to] of ranges) {
    pieces.push({ text: text.slice(at, from), isWritten: false }, { text: text.slice(from, to), isWritten: true });
    at = to;
  }
  return [...pieces, { text: text.slice(at), isWritten: false }].filter((piece) => piece.text !== "");
}

function commonStart(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length += 1;
  return length;
}

function commonEnd(a: string, b: string, start: number): number {
  const most = Math.min(a.length, b.length) - start;
  let length = 0;
  while (length < most && a[a.length - 1 - length] === b[b.length - 1 - length]) length += 1;
  return length;
}
