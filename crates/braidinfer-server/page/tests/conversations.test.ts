import assert from "node:assert/strict";
import { test } from "node:test";

import { newConversation, newTurn, type Conversation, type Turn } from "../src/conversations/conversation";
import { exportedJson, importedJson, ImportFault } from "../src/conversations/json";
import { exportedMarkdown, importedMarkdown } from "../src/conversations/markdown-file";
import { addTurn, branchedOff, choose, merged, removeTurn, shownBranch, siblingsOf } from "../src/conversations/tree";

const texts = (conversation: Conversation) => shownBranch(conversation).map(({ text }) => text);

function talk(conversation: Conversation, ...lines: string[]): Turn[] {
  const turns: Turn[] = [];
  for (const text of lines) {
    const role = turns.length % 2 === 0 ? "user" : "assistant";
    turns.push(addTurn(conversation, newTurn({ role, parent: turns.at(-1)?.id ?? null, text })));
  }
  return turns;
}

test("a version of a turn is a sibling, and the branch that is shown is remembered", () => {
  const conversation = newConversation();
  const [question, answer] = talk(conversation, "one", "first", "two", "deep") as [Turn, Turn];
  const second = addTurn(conversation, newTurn({ role: "assistant", parent: question.id, text: "second" }));
  assert.deepEqual(texts(conversation), ["one", "second"]);
  assert.deepEqual(siblingsOf(conversation, second).map(({ text }) => text), ["first", "second"]);
  choose(conversation, answer);
  assert.deepEqual(texts(conversation), ["one", "first", "two", "deep"]);
});

test("a turn is deleted with what follows, on every branch", () => {
  const conversation = newConversation();
  const [question, answer] = talk(conversation, "one", "first", "two") as [Turn, Turn];
  addTurn(conversation, newTurn({ role: "user", parent: answer.id, text: "other" }));
  removeTurn(conversation, answer.id);
  assert.deepEqual(Object.keys(conversation.turns), [question.id]);
  assert.equal(conversation.removed.length, 3);
});

test("a branch becomes a conversation of its own", () => {
  const conversation = newConversation({ title: "Talk" });
  const turns = talk(conversation, "one", "first", "two", "second");
  const branched = branchedOff(conversation, (turns[1] as Turn).id);
  assert.deepEqual(texts(branched), ["one", "first"]);
  assert.notEqual(branched.id, conversation.id);
  assert.ok(Object.keys(branched.turns).every((id) => !(id in conversation.turns)));
});

test("turns of two tabs are all kept, and deleted ones stay deleted", () => {
  const mine = newConversation();
  const [question] = talk(mine, "one", "gone") as [Turn];
  const stored = structuredClone(mine);
  addTurn(mine, newTurn({ role: "assistant", parent: question.id, text: "mine" }));
  addTurn(stored, newTurn({ role: "assistant", parent: question.id, text: "theirs" }));
  removeTurn(stored, Object.values(stored.turns).find(({ text }) => text === "gone")?.id as string);
  const both = merged(mine, stored);
  assert.deepEqual(Object.values(both.turns).map(({ text }) => text).sort(), ["mine", "one", "theirs"]);
  assert.deepEqual(texts(both), ["one", "mine"]);
});

function sample(): Conversation {
  const conversation = newConversation({ title: "A talk", model: "m", settings: { temperature: "0.5", system: "Be brief." } });
  const [question, answer] = talk(conversation, "one", "first\n\n```js\nlet a;\n```") as [Turn, Turn];
  question.files.push({ name: "a-->b.txt", text: "# text\n<!-- braidinfer:user -->\n\\<!-- braidinfer:user -->\n", tokens: 3 });
  answer.thought = "Hm.";
  answer.calls.push({ id: "c1", name: "weather", arguments: '{"city":"Bern"}' });
  const result = newTurn({ role: "tool", parent: answer.id, results: [{ id: "c1", name: "weather", text: "rain\n" }] });
  addTurn(conversation, result);
  addTurn(conversation, newTurn({ role: "assistant", parent: result.id, text: "## You\n\nIt rains.", model: "other" }));
  return conversation;
}

/** Without what differs between a conversation and its copy. */
function essence(conversation: Conversation) {
  return shownBranch(conversation).map(({ role, text, thought, files, calls, results, model }) => ({ role, text, thought, calls, results, model, files: files.map(({ name, text }) => ({ name, text })) }));
}

test("JSON brings back all branches under new ids", () => {
  const conversation = sample();
  const [question] = shownBranch(conversation) as [Turn];
  addTurn(conversation, newTurn({ role: "assistant", parent: question.id, text: "another" }));
  const [back] = importedJson(exportedJson([conversation])) as [Conversation];
  assert.deepEqual(essence(back), essence(conversation));
  assert.equal(Object.keys(back.turns).length, 5);
  assert.deepEqual([back.title, back.model, back.settings], ["A talk", "m", conversation.settings]);
  assert.notEqual(back.id, conversation.id);
  assert.ok(Object.keys(back.turns).every((id) => !(id in conversation.turns)));
});

test("Markdown brings back the shown branch, whatever is in it", () => {
  const conversation = sample();
  const back = importedMarkdown(exportedMarkdown(conversation));
  assert.deepEqual(essence(back), essence(conversation));
  assert.deepEqual([back.title, back.settings], ["A talk", { system: "Be brief." }]);
  const notebook = newConversation({ mode: "notebook", notebook: { text: "## Once\n\nupon\n", written: [] } });
  assert.equal(importedMarkdown(exportedMarkdown(notebook)).notebook.text, "## Once\n\nupon\n");
});

test("a file that is wrong is refused with what is wrong", () => {
  const good = () => JSON.parse(exportedJson([sample()]));
  const spoilt = (spoil: (file: any) => void) => {
    const file = good();
    spoil(file);
    return JSON.stringify(file);
  };
  const cases: [string, RegExp][] = [
    ["{", /no JSON/],
    ["[]", /should be an object/],
    ["{}", /not exported from this page/],
    [spoilt((file) => (file.version = 2)), /version 2/],
    [spoilt((file) => (file.conversations = {})), /should be a list/],
    [spoilt((file) => (file.conversations = Array(5001).fill({}))), /5001.*at most 5000/],
    [spoilt((file) => (file.conversations[0].turns[1].text = 5)), /Text of turn 2 of conversation 1 should be a text, but is 5/],
    [spoilt((file) => (file.conversations[0].turns[1].role = "system")), /Role of turn 2/],
    [spoilt((file) => (file.conversations[0].turns[1].parent = "nowhere")), /follows a turn that is not in the file/],
    [spoilt((file) => (file.conversations[0].turns[1].id = file.conversations[0].turns[0].id)), /id of an earlier turn/],
    [spoilt((file) => (file.conversations[0].turns[0].parent = file.conversations[0].turns[1].id)), /in a circle/],
    [spoilt((file) => (file.conversations[0].title = "x".repeat(301))), /301 characters/],
    [spoilt((file) => (file.conversations[0].created = 1e300)), /no time/],
    [spoilt((file) => (file.conversations[0].notebook = { text: "ab", written: [[0, 3]] })), /outside its text/],
  ];
  for (const [text, expected] of cases) {
    assert.throws(() => importedJson(text), (error: Error) => error instanceof ImportFault && expected.test(error.message), `${expected}`);
  }
  assert.throws(() => importedMarkdown("# Anything"), ImportFault);
  assert.throws(() => importedMarkdown('<!-- braidinfer:conversation {"title":5} -->'), ImportFault);
  assert.throws(() => importedMarkdown("<!-- braidinfer:conversation -->\n<!-- braidinfer:user {x} -->"), ImportFault);
});

test("names of a file that mean something to JavaScript do no harm", () => {
  const file = JSON.parse(exportedJson([sample()]));
  file.conversations[0].settings = JSON.parse('{"__proto__": {"temperature": "9"}, "constructor": "x", "top_p": "0.5"}');
  file.conversations[0].chosen = JSON.parse('{"__proto__": "x"}');
  file.conversations[0].turns[0].id = "__proto__";
  file.conversations[0].turns[1].parent = "__proto__";
  const [back] = importedJson(JSON.stringify(file)) as [Conversation];
  assert.deepEqual(back.settings, { top_p: "0.5" });
  assert.equal(Object.getPrototypeOf(back.turns), Object.prototype);
  assert.equal(shownBranch(back).length, 4);
});
