// A small part of Markdown as DOM. Text is untrusted: it becomes text nodes only, and links stay text.

import { copyButton, create } from "./elements.js";

// Lines may be hostile: no pattern may look at one again and again.
const FENCE = /^\s*(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const BLANK = /^\s*$/;

// In order: escaped sign, code, bold, italics.
const INLINE =
  /\\([\\`*_#])|(?<!`)(`{1,3})(?!`)([^]*?[^`])\2(?!`)|\*\*(?=\S)([^]*?\S)\*\*(?!\*)|(?<![\w*])(\*|_)(?=[^\s*_])([^]*?[^\s*_])\5(?![\w*])/;

// Bounds on what a hostile text can cost: deeper and longer ones are shown as they are.
const DEEPEST = 6;
const LONGEST = 8000;

const shownBlocks = new WeakMap();

/** Shows `text` in `container`, and keeps the elements of blocks that did not change since the last call. */
export function showMarkdown(container, text) {
  const blocks = blocksOf(text);
  const shown = shownBlocks.get(container) ?? [];
  let same = 0;
  while (same < blocks.length && blocks[same].source === shown[same]?.source) same += 1;
  [...container.children].slice(same).forEach((element) => element.remove());
  container.append(...blocks.slice(same).map(elementOf));
  shownBlocks.set(container, blocks);
}

function blocksOf(text) {
  const lines = text.split(/\r?\n/);
  const blocks = [];
  let next = 0;
  while (next < lines.length) {
    if (BLANK.test(lines[next])) {
      next += 1;
      continue;
    }
    const [kind, end] = extent(lines, next);
    const own = lines.slice(next, end);
    blocks.push({ kind, lines: own, source: own.join("\n") });
    next = end;
  }
  return blocks;
}

/** Kind of the block that starts at a line, and where it ends. */
function extent(lines, start) {
  const line = lines[start];
  if (FENCE.test(line)) return ["code", endOfCode(lines, start)];
  if (HEADING.test(line)) return ["heading", start + 1];
  if (RULE.test(line)) return ["rule", start + 1];
  if (ITEM.test(line)) return ["list", endOfList(lines, start)];
  let end = start + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !startsBlock(lines[end])) end += 1;
  return ["paragraph", end];
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, ITEM].some((pattern) => pattern.test(line));
}

function endOfCode(lines, start) {
  const fence = FENCE.exec(lines[start])[1];
  const closes = (line) => line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "";
  const closing = lines.findIndex((line, index) => index > start && closes(line));
  return closing < 0 ? lines.length : closing + 1;
}

/** A list ends at another kind of block, at other markers, or at text that is not indented after an empty line. */
function endOfList(lines, start) {
  const first = itemOf(lines[start]);
  let end = start + 1;
  for (let index = end; index < lines.length; index += 1) {
    const line = lines[index];
    if (BLANK.test(line)) continue;
    const item = ITEM.test(line) && !RULE.test(line) ? itemOf(line) : null;
    const otherList = item !== null && item.indent <= first.indent + 1 && item.ordered !== first.ordered;
    const otherBlock = item === null && (startsBlock(line) || (index > end && !/^\s/.test(line)));
    if (otherList || otherBlock) break;
    end = index + 1;
  }
  return end;
}

function itemOf(line) {
  const [, space, marker, text] = ITEM.exec(line);
  return { indent: space.replaceAll("\t", "    ").length, ordered: /\d/.test(marker), start: parseInt(marker, 10), text };
}

function elementOf({ kind, lines }) {
  switch (kind) {
    case "code":
      return codeElement(lines);
    case "heading":
      return headingElement(lines[0]);
    case "rule":
      return create("hr");
    case "list":
      return listElement(lines);
    default:
      return create("p", {}, ...inline(lines.join("\n")));
  }
}

function codeElement(lines) {
  const [, fence, info] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const indent = new RegExp(`^ {0,${lines[0].search(/\S/)}}`);
  const text = lines.slice(1, isClosed ? -1 : undefined).map((line) => line.replace(indent, "")).join("\n");
  const head = create("div", { className: "code-head" }, create("span", { textContent: info.trim().split(/\s/)[0] }), copyButton(() => text));
  // A region that scrolls must be reachable by keyboard.
  const code = create("pre", { tabIndex: 0 }, create("code", { textContent: text }));
  return create("div", { className: "code" }, head, code);
}

/** The page has headings of the first two levels itself. */
function headingElement(line) {
  const [, signs, text] = HEADING.exec(line);
  return create(`h${Math.min(signs.length + 2, 6)}`, {}, ...inline(text));
}

function listElement(lines) {
  const open = [];
  let root = null;
  for (const item of itemsOf(lines)) {
    while (open.length > 1 && item.indent < open.at(-1).indent) open.pop();
    const level = open.at(-1);
    const goesDeeper = level !== undefined && item.indent > level.indent + 1 && open.length < DEEPEST;
    if (level === undefined || goesDeeper) {
      const list = create(item.ordered ? "ol" : "ul", item.ordered ? { start: item.start } : {});
      level?.list.lastElementChild.append(list);
      open.push({ indent: item.indent, list });
      root ??= list;
    }
    open.at(-1).list.append(create("li", {}, ...inline(item.text)));
  }
  return root;
}

function itemsOf(lines) {
  const items = [];
  for (const line of lines) {
    if (ITEM.test(line)) items.push(itemOf(line));
    else if (!BLANK.test(line)) items.at(-1).text += `\n${line.trim()}`;
  }
  return items;
}

function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  while (depth < DEEPEST && rest.length < LONGEST) {
    const found = INLINE.exec(rest);
    if (found === null) break;
    const [whole, escaped, , code, bold, , italic] = found;
    nodes.push(rest.slice(0, found.index));
    if (escaped) nodes.push(escaped);
    else if (code) nodes.push(create("code", { textContent: code.trim() || code }));
    else if (bold) nodes.push(create("strong", {}, ...inline(bold, depth + 1)));
    else nodes.push(create("em", {}, ...inline(italic, depth + 1)));
    rest = rest.slice(found.index + whole.length);
  }
  return [...nodes, rest].filter((node) => node !== "");
}
