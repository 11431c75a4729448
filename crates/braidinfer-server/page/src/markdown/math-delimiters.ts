// Where LaTeX begins and ends in a text. A price is no LaTeX.

export interface Formula {
  /** With its delimiters. */
  raw: string;
  tex: string;
  isDisplay: boolean;
}

/** Longer ones are shown as they are: a sign that is never closed must not be looked for through a whole book. */
const LONGEST = 4000;

/** The formula that begins at the start of a text. */
export function formulaAt(source: string): Formula | null {
  if (source.startsWith("$$")) return between(source, "$$", "$$", true);
  if (source.startsWith("\\[")) return between(source, "\\[", "\\]", true);
  if (source.startsWith("\\(")) return between(source, "\\(", "\\)", false);
  return source.startsWith("$") ? inDollars(source) : null;
}

/** Where the next one may begin. */
export function nextFormula(source: string): number | undefined {
  const found = /(?<![\w\\$])\$|\\[([]/.exec(source);
  return found?.index;
}

function between(source: string, open: string, close: string, isDisplay: boolean): Formula | null {
  const end = source.slice(0, LONGEST).indexOf(close, open.length);
  if (end < 0) return null;
  const tex = source.slice(open.length, end);
  return tex.trim() === "" || tex.includes("\n\n") ? null : { raw: source.slice(0, end + close.length), tex: tex.trim(), isDisplay };
}

/** As Pandoc has it: no space inside of either sign, and no digit after the second one. */
function inDollars(source: string): Formula | null {
  if (/^\$[\s$]/.test(source)) return null;
  const line = source.slice(0, LONGEST).split(/\n\s*\n/, 1)[0] as string;
  for (let at = 1; at < line.length; at += 1) {
    if (line[at] === "\\") at += 1;
    else if (line[at] === "`") return null;
    else if (line[at] === "$") return closesAt(line, at) ? { raw: line.slice(0, at + 1), tex: line.slice(1, at), isDisplay: false } : null;
  }
  return null;
}

/** As in "$6 or 7$": a number and words without any LaTeX. */
const PRICE = /^\d[^\\{]*\s[a-z]{2,}\b/i;

function closesAt(line: string, at: number): boolean {
  return !/\s/.test(line[at - 1] as string) && !/[\w$]/.test(line[at + 1] ?? "") && !PRICE.test(line.slice(1, at));
}
