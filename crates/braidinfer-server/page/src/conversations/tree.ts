// The tree of turns, and the branch of it that is shown.

import { newConversation, newId, type Conversation, type Turn } from "./conversation";

/** Name under which the choice among the first turns is kept. */
const ROOT = "";

/** Turns by the turn that they follow, the oldest first. */
export type Children = Map<string | null, Turn[]>;

export function childrenIn(conversation: Conversation): Children {
  const children: Children = new Map();
  for (const turn of Object.values(conversation.turns)) {
    const siblings = children.get(turn.parent);
    if (siblings) siblings.push(turn);
    else children.set(turn.parent, [turn]);
  }
  for (const siblings of children.values()) siblings.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
  return children;
}

/** The turns that are shown, from the first one on. */
export function shownBranch(conversation: Conversation, children = childrenIn(conversation)): Turn[] {
  const branch: Turn[] = [];
  let parent: string | null = null;
  for (;;) {
    const versions: Turn[] = children.get(parent) ?? [];
    const chosen: string | undefined = conversation.chosen[parent ?? ROOT];
    const next: Turn | undefined = versions.find(({ id }) => id === chosen) ?? versions.at(-1);
    if (next === undefined) return branch;
    branch.push(next);
    parent = next.id;
  }
}

/** The turns from the first one to this one. */
export function branchTo(conversation: Conversation, id: string): Turn[] {
  const branch: Turn[] = [];
  for (let turn = conversation.turns[id]; turn; turn = turn.parent === null ? undefined : conversation.turns[turn.parent]) {
    branch.unshift(turn);
  }
  return branch;
}

/** All versions of a turn, itself among them, the oldest first. */
export function siblingsOf(conversation: Conversation, turn: Turn): Turn[] {
  return childrenIn(conversation).get(turn.parent) ?? [];
}

/** Adds or replaces a turn, and shows it. */
export function putTurn(conversation: Conversation, turn: Turn): void {
  conversation.turns[turn.id] = turn;
  conversation.chosen[turn.parent ?? ROOT] = turn.id;
}

/** A new turn must sort behind its siblings, though several may be made within a millisecond. */
export function addTurn(conversation: Conversation, turn: Turn): Turn {
  const latest = siblingsOf(conversation, turn).at(-1);
  const added = latest && latest.at >= turn.at ? { ...turn, at: latest.at + 1 } : turn;
  putTurn(conversation, added);
  return added;
}

export function choose(conversation: Conversation, turn: Turn): void {
  conversation.chosen[turn.parent ?? ROOT] = turn.id;
}

/** A turn and all that follow it, on every branch. */
export function withFollowers(conversation: Conversation, id: string): string[] {
  const children = childrenIn(conversation);
  const found = [id];
  // Those that are found are looked through in turn.
  for (const each of found) found.push(...(children.get(each) ?? []).map((turn) => turn.id));
  return found;
}

export function removeTurn(conversation: Conversation, id: string): void {
  for (const each of withFollowers(conversation, id)) {
    delete conversation.turns[each];
    delete conversation.chosen[each];
    conversation.removed.push(each);
  }
}

/** A new conversation with the turns from the first one to this one. */
export function branchedOff(conversation: Conversation, id: string): Conversation {
  const { title, model, mode, settings } = conversation;
  const branched = newConversation({ title: title && `${title} (branch)`, model, mode, settings: { ...settings } });
  let parent: string | null = null;
  for (const turn of branchTo(conversation, id)) {
    const copy: Turn = { ...turn, id: newId(), parent };
    putTurn(branched, copy);
    parent = copy.id;
  }
  return branched;
}

/** What two tabs have of one conversation: no turn of either is lost, and the newer state of each counts. All else is the first's. */
export function merged(first: Conversation, second: Conversation): Conversation {
  const removed = [...new Set([...second.removed, ...first.removed])];
  const turns: Record<string, Turn> = { ...second.turns };
  for (const turn of Object.values(first.turns)) {
    const other = turns[turn.id];
    if (!other || turn.changed >= other.changed) turns[turn.id] = turn;
  }
  for (const id of removed) delete turns[id];
  return { ...first, removed, turns, chosen: { ...second.chosen, ...first.chosen } };
}
