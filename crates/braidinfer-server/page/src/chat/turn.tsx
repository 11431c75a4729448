// One turn: a question, an answer, or the results of tools.

import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { isEmpty, type Figures, type ToolCall, type Turn } from "../conversations/conversation";
import { startBranch, touch } from "../conversations/collection";
import { removeTurn, withFollowers } from "../conversations/tree";
import { Markdown } from "../markdown/markdown";
import { CopyButton, IconButton, Menu } from "../page/controls";
import { Icon } from "../page/icon";
import { confirmed } from "../page/questions";
import { unlessSame } from "../page/same-props";
import { state } from "../page/state";
import { changed } from "../page/store";
import { rate, seconds, whole } from "../panels/numbers";
import { askAnew, canContinue, continueAnswer, giveResults, putAnswer, regenerate, showVersion } from "./answering";
import { Chips, fitHeight, isSendingKey } from "./composer";
import { partsOf } from "./thoughts";

export interface TurnProps {
  turn: Turn;
  version: number;
  versions: number;
  isLast: boolean;
  isArriving: boolean;
  /** Whether an answer is coming, here or in another turn. */
  isBusy: boolean;
  isEditing: boolean;
  showsModel: boolean;
}

export const TurnView = unlessSame<TurnProps>((props) => {
  const { turn } = props;
  return (
    <article class={`turn ${turn.role}`} data-turn={turn.id} aria-busy={props.isArriving}>
      <h2 class="unseen">{{ user: "You", assistant: "Answer", tool: "Results of tools" }[turn.role]}</h2>
      {turn.role === "user" ? <Question {...props} /> : turn.role === "tool" ? <Results {...props} /> : <Answer {...props} />}
    </article>
  );
});

function Question(props: TurnProps) {
  const { turn, isBusy, isEditing } = props;
  if (isEditing) return <Editor turn={turn} action="Send" onDone={(text) => askAnew(turn, text)} />;
  return (
    <>
      {turn.files.length > 0 && <Chips files={turn.files} />}
      {turn.text !== "" && <p class="question">{turn.text}</p>}
      <div class="foot">
        <Versions {...props} />
        <CopyButton text={() => turn.text} label="Copy this question" />
        <button type="button" class="quiet" aria-label="Edit this question" disabled={isBusy} onClick={() => edit(turn)}>
          Edit
        </button>
        <TurnMenu turn={turn} isBusy={isBusy} />
      </div>
    </>
  );
}

function Answer(props: TurnProps) {
  const { turn, isArriving, isBusy, isLast, isEditing, showsModel } = props;
  const { thought, said } = partsOf(turn);
  if (isEditing) return <Editor turn={{ ...turn, text: said }} action="Save" onDone={(text) => putAnswer(turn, text)} />;
  return (
    <div class="answer">
      {showsModel && turn.model !== null && <p class="by">{turn.model}</p>}
      {thought !== "" && <Thoughts turn={turn} thought={thought} isThinking={isArriving && said === ""} />}
      <Markdown text={said} isComplete={!isArriving} />
      {turn.calls.map((call, at) => (
        <Call key={at} call={call} />
      ))}
      {isArriving && isEmpty(turn) && (
        <p class="waiting" aria-label="Waiting">
          <i />
          <i />
          <i />
        </p>
      )}
      {turn.failure !== null && (
        <p class="failure" role="alert">
          {turn.failure}
        </p>
      )}
      {isLast && !isArriving && turn.calls.length > 0 && <ResultsForm turn={turn} isBusy={isBusy} />}
      <div class="foot">
        <Versions {...props} />
        {!isArriving && (
          <>
            {said !== "" && <CopyButton text={() => said} label="Copy this answer" />}
            <button type="button" class="quiet again" disabled={isBusy} onClick={() => regenerate(turn)}>
              {isEmpty(turn) ? "Send again" : "Regenerate"}
            </button>
            {canContinue(turn) && (
              <button type="button" class="quiet" disabled={isBusy} onClick={() => void continueAnswer(turn)}>
                Continue
              </button>
            )}
            <button type="button" class="quiet" aria-label="Edit this answer" disabled={isBusy} onClick={() => edit(turn)}>
              Edit
            </button>
            <TurnMenu turn={turn} isBusy={isBusy} />
          </>
        )}
        <FiguresLine turn={turn} isArriving={isArriving} />
      </div>
    </div>
  );
}

/** Thoughts that come in one piece were not timed. */
function isWorthSaying(thoughtSeconds: number | null): thoughtSeconds is number {
  return thoughtSeconds !== null && thoughtSeconds > 0.01;
}

function Thoughts({ turn, thought, isThinking }: { turn: Turn; thought: string; isThinking: boolean }) {
  const parts = [
    isThinking ? "Thinking …" : !isWorthSaying(turn.thoughtSeconds) ? "Thoughts" : `Thought for ${seconds(turn.thoughtSeconds)}`,
    turn.figures?.thoughtTokens ? `${whole(turn.figures.thoughtTokens)} tokens` : "",
  ];
  return (
    <details class="thoughts">
      <summary>{parts.filter(Boolean).join(" · ")}</summary>
      <p>{thought}</p>
    </details>
  );
}

function Call({ call }: { call: ToolCall }) {
  return (
    <section class="call">
      <h3>
        <Icon name="tool" />
        Calls <code>{call.name}</code>
      </h3>
      <pre tabIndex={0}>{pretty(call.arguments)}</pre>
    </section>
  );
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function ResultsForm({ turn, isBusy }: { turn: Turn; isBusy: boolean }) {
  const [texts, setTexts] = useState<string[]>([]);
  const send = (event: Event) => {
    event.preventDefault();
    giveResults(turn, turn.calls.map(({ id, name }, at) => ({ id, name, text: texts[at] ?? "" })));
  };
  return (
    <form class="results-form" onSubmit={send}>
      {turn.calls.map((call, at) => (
        <label key={at}>
          Result of {call.name}
          <textarea rows={2} value={texts[at] ?? ""} onInput={(event) => setTexts(Object.assign([...texts], { [at]: event.currentTarget.value }))} />
        </label>
      ))}
      <button class="primary" disabled={isBusy}>
        {turn.calls.length === 1 ? "Send the result" : "Send the results"}
      </button>
    </form>
  );
}

function Results(props: TurnProps) {
  return (
    <div class="results">
      {props.turn.results.map((result, at) => (
        <section class="call" key={at}>
          <h3>
            <Icon name="tool" />
            Result of <code>{result.name}</code>
          </h3>
          <pre tabIndex={0}>{pretty(result.text)}</pre>
        </section>
      ))}
      <div class="foot">
        <Versions {...props} />
        <TurnMenu turn={props.turn} isBusy={props.isBusy} />
      </div>
    </div>
  );
}

function Versions({ turn, version, versions, isBusy }: TurnProps) {
  if (versions < 2) return null;
  return (
    <span class="versions" role="group" aria-label="Versions">
      <IconButton icon="before" label="Earlier version" disabled={isBusy || version === 0} onClick={() => showVersion(turn, -1)} />
      <span>
        {version + 1}/{versions}
      </span>
      <IconButton icon="next" label="Later version" disabled={isBusy || version === versions - 1} onClick={() => showVersion(turn, 1)} />
    </span>
  );
}

function TurnMenu({ turn, isBusy }: { turn: Turn; isBusy: boolean }) {
  const entries = [
    { label: "Branch into a new conversation", onSelect: () => void startBranch(turn) },
    { label: "Delete", isDangerous: true, onSelect: () => void askToDelete(turn) },
  ];
  return <Menu label="More" entries={entries} disabled={isBusy} />;
}

async function askToDelete(turn: Turn): Promise<void> {
  const { conversation } = state;
  const others = withFollowers(conversation, turn.id).length - 1;
  const what = { user: "question", assistant: "answer", tool: "turn" }[turn.role];
  const following = others === 0 ? "" : others === 1 ? " and the turn that follows it" : ` and the ${others} turns that follow it`;
  if (!(await confirmed(`Delete this ${what}?`, `This ${what}${following} will be gone for good.`, "Delete"))) return;
  removeTurn(conversation, turn.id);
  await touch(conversation);
}

function edit(turn: Turn): void {
  state.editing = turn.id;
  changed();
}

function endEditing(): void {
  state.editing = null;
  changed();
  document.getElementById("question")?.focus();
}

function Editor({ turn, action, onDone }: { turn: Turn; action: string; onDone: (text: string) => void }) {
  const [text, setText] = useState(turn.text);
  const field = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => fitHeight(field.current), [text]);
  useLayoutEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(turn.text.length, turn.text.length);
  }, []);
  const finish = (event: Event) => {
    event.preventDefault();
    if (text.trim() === "") return;
    endEditing();
    onDone(text.trim());
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      endEditing();
    } else if (action === "Send" && isSendingKey(event)) {
      finish(event);
    }
  };
  return (
    <form class="editor" onSubmit={finish}>
      <label class="unseen" for="edited">
        {action === "Send" ? "Edited question" : "Edited answer"}
      </label>
      <textarea ref={field} id="edited" value={text} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={onKeyDown} />
      <div class="choices">
        <button type="button" class="quiet" onClick={endEditing}>
          Cancel
        </button>
        <button class="primary">{action}</button>
      </div>
    </form>
  );
}

/** Figures change this often while an answer arrives, in milliseconds: faster could not be read. */
const CALM = 500;

function FiguresLine({ turn, isArriving }: { turn: Turn; isArriving: boolean }) {
  const shown = useRef({ at: 0, text: "" });
  const now = performance.now();
  if (!isArriving || now - shown.current.at > CALM) shown.current = { at: now, text: inWords(turn) };
  return <span class="figures">{shown.current.text}</span>;
}

function inWords({ figures, end, edited }: Turn): string {
  const parts = [...(figures ? figuresInWords(figures) : []), edited && "edited", end === "stopped" && "stopped", end === "length" && "cut at the limit of tokens"];
  return parts.filter(Boolean).join(" · ");
}

export function figuresInWords({ tokens, counted, perSecond, firstAfter, promptTokens, cachedTokens }: Figures): (string | false | null)[] {
  const cached = cachedTokens > 0 ? ` (${whole(cachedTokens)} cached)` : "";
  return [
    tokens > 0 && `${counted ? "" : "about "}${whole(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
    perSecond !== null && `${rate(perSecond)} tokens/s`,
    firstAfter !== null && `first after ${seconds(firstAfter)}`,
    promptTokens ? `prompt ${whole(promptTokens)}${cached}` : null,
  ];
}

