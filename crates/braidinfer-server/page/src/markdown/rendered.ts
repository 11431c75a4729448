// Markdown as elements, drawn while it comes: blocks that are finished are read and drawn once.

import purifier, { type Config } from "dompurify";
import type { Token } from "marked";

import { copyText } from "../page/clipboard";
import { blocksIn, escaped, htmlOf, isSafeLink } from "./html";

/** So many blocks at the end may still change with the next token. */
const UNFINISHED = 2;
/** Longer code is coloured only when it is complete. */
const LONGEST_COLOURED = 20_000;
/** Deeper quotes and lists are shown as they are. */
const DEEPEST = 40;

const TAGS =
  "p br hr h3 h4 h5 h6 ul ol li blockquote pre code strong em del a table thead tbody tr th td input span sub sup kbd mark u s b i details summary".split(" ");
const CLEAN: Config & { RETURN_DOM_FRAGMENT: true } = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "align", "start", "type", "checked", "disabled", "class"],
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const COLOURS_ONLY: Config & { RETURN_DOM_FRAGMENT: true } = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], ALLOW_DATA_ATTR: false, RETURN_DOM_FRAGMENT: true };

interface Block {
  raw: string;
  isFinished: boolean;
  nodes: ChildNode[];
}

/** So that a text may be shown again and again while it grows. */
export class RenderedText {
  private finished = "";
  private isComplete = false;
  /** Drawn, but not finished. */
  private last: Block[] = [];

  constructor(private readonly container: HTMLElement) {}

  show(text: string, isComplete: boolean): void {
    // What is added to a complete text may belong to its last block.
    if (!text.startsWith(this.finished) || (this.isComplete && (!isComplete || text !== this.finished))) this.clear();
    const tokens = readBlocks(text.slice(this.finished.length));
    const finished = isComplete ? tokens.length : Math.max(0, tokens.length - UNFINISHED);
    const blocks = this.draw(tokens, finished);
    this.finished += blocks.slice(0, finished).map(({ raw }) => raw).join("");
    this.last = blocks.slice(finished);
    this.isComplete = isComplete;
  }

  /** Blocks that stay are left alone: what is selected in them stays selected. */
  private draw(tokens: Token[], finished: number): Block[] {
    let same = 0;
    while (same < tokens.length && stays(this.last[same], tokens[same] as Token, same < finished)) same += 1;
    for (const { nodes } of this.last.slice(same)) for (const node of nodes) node.remove();
    const added = tokens.slice(same).map((token, at) => drawn(token, same + at < finished));
    this.container.append(...added.flatMap(({ nodes }) => nodes));
    return [...this.last.slice(0, same), ...added];
  }

  private clear(): void {
    this.container.replaceChildren();
    this.finished = "";
    this.last = [];
  }
}

/** Long code is drawn once more when it is finished. */
function stays(block: Block | undefined, token: Token, isFinished: boolean): boolean {
  return block?.raw === token.raw && (block.isFinished === isFinished || token.type !== "code" || token.raw.length < LONGEST_COLOURED);
}

/** Very deep quotes and lists cost more than they say. */
const TOO_DEEP = new RegExp(`^[ \\t]*(?:>[ \\t]*|(?:[*+-]|\\d{1,9}[.)])[ \\t]+){${DEEPEST}}`, "m");

function readBlocks(text: string): Token[] {
  try {
    if (TOO_DEEP.test(text)) throw new RangeError("too deep");
    return blocksIn(text).filter((token) => token.raw !== "");
  } catch {
    return [{ type: "text", raw: text, text, escaped: false } as Token];
  }
}

function drawn(token: Token, isFinished: boolean): Block {
  const block: Block = { raw: token.raw, isFinished, nodes: [] };
  if (token.type === "space") return block;
  const fragment = elementsOf(token);
  finishElements(fragment, isFinished);
  return { ...block, nodes: [...fragment.childNodes].filter((node) => node instanceof Element || node.textContent?.trim() !== "") };
}

function elementsOf(token: Token): DocumentFragment {
  let html: string;
  try {
    html = htmlOf(token);
  } catch {
    html = `<p>${escaped(token.raw)}</p>`;
  }
  return purifier.sanitize(html, CLEAN);
}

function finishElements(fragment: DocumentFragment, isFinished: boolean): void {
  for (const link of fragment.querySelectorAll("a")) finishLink(link);
  for (const table of fragment.querySelectorAll("table")) wrap(table, "table-frame");
  for (const pre of fragment.querySelectorAll("pre")) finishCode(pre, isFinished);
  for (const span of fragment.querySelectorAll<HTMLElement>("span.formula")) finishFormula(span);
  for (const box of fragment.querySelectorAll("input")) box.closest("li")?.classList.add("task");
}

function finishLink(link: HTMLAnchorElement): void {
  if (!isSafeLink(link.getAttribute("href") ?? "")) {
    link.replaceWith(...link.childNodes);
    return;
  }
  link.target = "_blank";
  link.rel = "noopener noreferrer";
}

/** What is wide scrolls by itself, and can be reached by keyboard. */
function wrap(element: HTMLElement, className: string): void {
  const frame = document.createElement("div");
  frame.className = className;
  frame.tabIndex = 0;
  element.replaceWith(frame);
  frame.append(element);
}

function finishCode(pre: HTMLPreElement, isFinished: boolean): void {
  const code = pre.querySelector("code");
  if (code === null) return;
  const text = code.textContent ?? "";
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const frame = document.createElement("div");
  frame.className = "code";
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  frame.append(headOf(language, text), pre);
  if (language !== "" && (isFinished || text.length < LONGEST_COLOURED)) void colour(code, text, language.toLowerCase());
}

function headOf(language: string, text: string): HTMLElement {
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  head.append(name, button);
  return head;
}

let colours: typeof import("../code") | null = null;
let formulas: typeof import("../math") | null = null;

/** At once, if the colours are there: code that is still growing does not flicker. */
function colour(code: HTMLElement, text: string, language: string): void | Promise<void> {
  if (colours !== null) return putColours(code, colours.coloured(text, language));
  return import("../code").then((loaded) => {
    colours = loaded;
    putColours(code, loaded.coloured(text, language));
  });
}

function putColours(code: HTMLElement, html: string | null): void {
  if (html === null) return;
  code.replaceChildren(purifier.sanitize(html, COLOURS_ONLY));
}

function finishFormula(span: HTMLElement): void | Promise<void> {
  const tex = span.textContent ?? "";
  const isDisplay = span.classList.contains("display");
  if (isDisplay) span.tabIndex = 0;
  if (formulas !== null) return putFormula(span, tex, isDisplay, formulas);
  return import("../math").then((loaded) => {
    formulas = loaded;
    putFormula(span, tex, isDisplay, loaded);
  });
}

/** What is no LaTeX stays as it was written. */
function putFormula(span: HTMLElement, tex: string, isDisplay: boolean, { formula }: typeof import("../math")): void {
  span.title = tex;
  try {
    span.replaceChildren(formula(tex, isDisplay));
  } catch {
    span.classList.add("not-drawn");
  }
}
