// Questions to the person, one at a time: for an API key, and whether something may be lost.

import { useRef, useState } from "preact/hooks";

import { onKeyNeeded, type GivenKey } from "../api/requests";
import { Dialog } from "./controls";
import { changed } from "./store";

type Question = { kind: "key"; reason: string; answer: (key: GivenKey | null) => void } | { kind: "confirm"; title: string; text: string; action: string; answer: (yes: boolean) => void };

let questions: Question[] = [];

export function startQuestions(): void {
  onKeyNeeded((reason) => new Promise((answer) => put({ kind: "key", reason, answer })));
}

export function confirmed(title: string, text: string, action: string): Promise<boolean> {
  return new Promise((answer) => put({ kind: "confirm", title, text, action, answer }));
}

export function isAsking(): boolean {
  return questions.length > 0;
}

function put(question: Question): void {
  questions = [...questions, question];
  changed();
}

function close(question: Question): void {
  questions = questions.filter((each) => each !== question);
  changed();
}

export function Questions() {
  const question = questions[0];
  if (question === undefined) return null;
  return question.kind === "key" ? <KeyQuestion key={question} question={question} /> : <Confirmation key={question} question={question} />;
}

function KeyQuestion({ question }: { question: Extract<Question, { kind: "key" }> }) {
  const [key, setKey] = useState("");
  const [isRemembered, setRemembered] = useState(false);
  const given = useRef<GivenKey | null>(null);
  const closed = () => {
    close(question);
    question.answer(given.current);
  };
  const use = (event: Event) => {
    event.preventDefault();
    if (key.trim() === "") return;
    given.current = { key: key.trim(), isRemembered };
    (event.currentTarget as HTMLElement).closest("dialog")?.close();
  };
  return (
    <Dialog title="API key" onClose={closed} class="key-dialog">
      <form onSubmit={use}>
        <p id="key-reason">{question.reason}</p>
        <label for="key">Key</label>
        <input id="key" type="password" autocomplete="off" required autofocus value={key} onInput={(event) => setKey(event.currentTarget.value)} />
        <label class="tick">
          <input type="checkbox" id="remember-key" checked={isRemembered} onChange={(event) => setRemembered(event.currentTarget.checked)} />
          Remember on this computer
        </label>
        <p class="hint">{isRemembered ? "Kept until you forget it in the settings. Others who use this browser can use it, too." : "Kept until this tab is closed."}</p>
        <div class="choices">
          <button type="button" id="no-key" class="quiet" onClick={(event) => event.currentTarget.closest("dialog")?.close()}>
            Cancel
          </button>
          <button class="primary">Use this key</button>
        </div>
      </form>
    </Dialog>
  );
}

function Confirmation({ question }: { question: Extract<Question, { kind: "confirm" }> }) {
  const answer = useRef(false);
  const closed = () => {
    close(question);
    question.answer(answer.current);
  };
  const choose = (yes: boolean) => (event: Event) => {
    answer.current = yes;
    (event.currentTarget as HTMLElement).closest("dialog")?.close();
  };
  return (
    <Dialog title={question.title} onClose={closed} class="confirmation">
      <p>{question.text}</p>
      <div class="choices">
        <button type="button" class="quiet" onClick={choose(false)}>
          Cancel
        </button>
        <button type="button" class="primary dangerous" onClick={choose(true)}>
          {question.action}
        </button>
      </div>
    </Dialog>
  );
}
