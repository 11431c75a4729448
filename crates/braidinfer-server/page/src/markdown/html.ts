// Markdown as HTML. Text is untrusted: tags are shown as text, but for a few that only shape text.

import { Marked, type Token, type TokenizerAndRendererExtension } from "marked";

import { formulaAt, nextFormula, type Formula } from "./math-delimiters";

/** Tags without attributes that models write where Markdown has no sign. */
const SHAPING = /(<\/?(?:br|sub|sup|kbd|mark|u|s|b|i|em|strong|details|summary)\s*\/?>)/i;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

export function isSafeLink(address: string): boolean {
  return SAFE_LINK.test(address);
}

export function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

function withShapingTags(html: string): string {
  return html.split(SHAPING).map((part, at) => (at % 2 === 1 ? part : escaped(part))).join("");
}

const rendererOfFormula = (token: object): string => {
  const { tex, isDisplay } = token as Formula;
  // Drawn later. No text of a model can have a class.
  return `<span class="${isDisplay ? "formula display" : "formula"}">${escaped(tex)}</span>`;
};

const formulas: TokenizerAndRendererExtension[] = [
  {
    name: "formulaBlock",
    level: "block",
    start: (source) => /(^|\n)(\$\$|\\\[)/.exec(source)?.index,
    tokenizer(source) {
      const formula = /^(\$\$|\\\[)/.test(source) ? formulaAt(source) : null;
      const rest = formula && /^[ \t]*(\n+|$)/.exec(source.slice(formula.raw.length));
      return formula && rest ? { type: "formulaBlock", ...formula, raw: formula.raw + rest[0] } : undefined;
    },
    renderer: (token) => `<p>${rendererOfFormula(token)}</p>`,
  },
  {
    name: "formula",
    level: "inline",
    start: nextFormula,
    tokenizer(source) {
      const formula = formulaAt(source);
      return formula ? { type: "formula", ...formula } : undefined;
    },
    renderer: rendererOfFormula,
  },
];

const marked = new Marked({
  gfm: true,
  breaks: true,
  extensions: formulas,
  renderer: {
    html: ({ text, block }) => (block && !/<\/?(details|summary)/i.test(text) ? `<p>${withShapingTags(text)}</p>` : withShapingTags(text)),
    link({ href, raw, tokens }) {
      return isSafeLink(href) ? `<a href="${escaped(href)}">${this.parser.parseInline(tokens)}</a>` : escaped(raw);
    },
    // Nothing is fetched because a model says so.
    image({ href, raw, text }) {
      return isSafeLink(href) ? `<a href="${escaped(href)}">Image: ${escaped(text || href)}</a>` : escaped(raw);
    },
    // The page has headings of the first two levels itself.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    code({ text, lang }) {
      const language = /^[\w+#.-]*/.exec((lang ?? "").trim())?.[0] ?? "";
      return `<pre><code class="language-${escaped(language)}">${escaped(text)}</code></pre>\n`;
    },
    checkbox: ({ checked }) => `<input type="checkbox" disabled${checked ? " checked" : ""}> `,
  },
});

export function blocksIn(text: string): Token[] {
  return marked.lexer(text);
}

export function htmlOf(block: Token): string {
  return marked.parser([block]);
}
