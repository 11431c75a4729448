import assert from "node:assert/strict";
import { test } from "node:test";

import { EventReader } from "../src/api/events";
import { fenced, messagesOf } from "../src/chat/messages";
import { partsOf } from "../src/chat/thoughts";
import { newTurn } from "../src/conversations/conversation";
import { formulaAt, nextFormula } from "../src/markdown/math-delimiters";
import { piecesOf, rangesAfterEdit } from "../src/notebook/ranges";
import { requestOf } from "../src/settings/fields";

test("events are read however the stream is cut", () => {
  const stream = 'data: {"a":1}\n\n: comment\n\ndata: one\r\ndata:two\r\n\r\ndata: [DONE]\n\n';
  for (let size = 1; size < stream.length; size += 1) {
    const reader = new EventReader();
    const events: string[] = [];
    for (let at = 0; at < stream.length; at += size) events.push(...reader.read(stream.slice(at, at + size)));
    assert.deepEqual(events, ['{"a":1}', "one\ntwo", "[DONE]"]);
  }
});

/** The formulas of a text. */
function formulas(text: string): string[] {
  const found: string[] = [];
  let rest = text;
  for (let at = nextFormula(rest); at !== undefined; at = nextFormula(rest)) {
    const formula = formulaAt(rest.slice(at));
    if (formula) found.push(formula.isDisplay ? `[${formula.tex}]` : formula.tex);
    rest = rest.slice(at + (formula?.raw.length ?? 1));
  }
  return found;
}

test("LaTeX is told from prices", () => {
  assert.deepEqual(formulas("between $5 and $6, or $7/$8, US$5 and A$6, $ 5 $, $6, or 7$ to 8$"), []);
  assert.deepEqual(formulas("$2x + 3 y$ $5 \\text{ or } 6$"), ["2x + 3 y", "5 \\text{ or } 6"]);
  assert.deepEqual(formulas("$x^2$, \\(y\\) and $a$-b"), ["x^2", "y", "a"]);
  assert.deepEqual(formulas("$$ E = mc^2 $$ and \\[z\\]"), ["[E = mc^2]", "[z]"]);
  assert.deepEqual(formulas("\\$x$ and $5.00 for `$x`"), []);
  assert.deepEqual(formulas("never closed $x and more"), []);
  assert.deepEqual(formulas("a\\$b $x\\$y$"), ["x\\$y"]);
});

test("thoughts are told from what is said", () => {
  assert.deepEqual(partsOf({ thought: "", text: "<think>a</think>\n\nb" }), { thought: "a", said: "b" });
  assert.deepEqual(partsOf({ thought: "", text: "a</think>b" }), { thought: "a", said: "b" });
  assert.deepEqual(partsOf({ thought: "x", text: "a</think>b" }), { thought: "x", said: "a</think>b" });
});

test("questions without an answer are left out of a request, and calls without results", () => {
  const [one, failed] = [newTurn({ role: "user", parent: null, text: "one" }), newTurn({ role: "assistant", parent: null })];
  const called = newTurn({ role: "assistant", parent: null, text: "", calls: [{ id: "c", name: "f", arguments: "{}" }] });
  const result = newTurn({ role: "tool", parent: null, results: [{ id: "c", name: "f", text: "4" }] });
  const two = newTurn({ role: "user", parent: null, text: "two" });
  assert.deepEqual(messagesOf([one, failed, two], " "), [{ role: "user", content: "two" }]);
  assert.deepEqual(messagesOf([one, called, result], "s").map(({ role }) => role), ["system", "user", "assistant", "tool"]);
  assert.deepEqual(messagesOf([one, called, two], "").map(({ role }) => role), ["user", "user"]);
});

test("a file is fenced by more signs than it has", () => {
  assert.equal(fenced({ name: 'a"b', text: "x\n````\n" }), 'File "a\\"b":\n`````\nx\n````\n`````');
});

test("what the model wrote is known after an edit", () => {
  assert.deepEqual(rangesAfterEdit([[3, 6]], "abcDEFghi", "abXcDEFghi"), [[4, 7]]);
  assert.deepEqual(rangesAfterEdit([[3, 6]], "abcDEFghi", "abcDxEFghi"), [[3, 4], [5, 7]]);
  assert.deepEqual(rangesAfterEdit([[3, 6]], "abcDEFghi", "abhi"), []);
  assert.deepEqual(rangesAfterEdit([[3, 6]], "abcDEFghi", "abcDEFghi!"), [[3, 6]]);
  assert.deepEqual(piecesOf("abcDEFghi", [[3, 6]]).map(({ text }) => text), ["abc", "DEF", "ghi"]);
});

test("settings are sent when they are set, and only good ones", () => {
  const both = { thinking: true, chat: true };
  assert.deepEqual(requestOf({}, both), { fields: {}, faults: {} });
  assert.deepEqual(requestOf({ temperature: "0", stop: "a\n\\n\n", enable_thinking: "off", seed: "" }, both).fields, { temperature: 0, stop: ["a", "\n"], enable_thinking: false });
  const bad = requestOf({ temperature: "3", top_k: "1.5", tools: "{}", schema: "[", thinking_budget: "-1" }, both);
  assert.deepEqual(bad.fields, {});
  assert.deepEqual(Object.keys(bad.faults).sort(), ["schema", "temperature", "thinking_budget", "tools", "top_k"]);
  assert.deepEqual(requestOf({ thinking_budget: "9", tools: "[]", temperature: "1" }, { thinking: false, chat: false }).fields, { temperature: 1 });
  assert.match(requestOf({ tools: '[{"type":"function"}]' }, both).faults.tools ?? "", /Tool 1 should be/);
});
