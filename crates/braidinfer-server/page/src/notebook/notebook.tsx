// One text, which the person and the model write together.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { stop } from "../chat/answering";
import { counted } from "../chat/attachments";
import { ModeChoice } from "../chat/empty";
import { figuresInWords } from "../chat/turn";
import { touchSoon } from "../conversations/collection";
import type { Conversation } from "../conversations/conversation";
import { IconButton } from "../page/controls";
import { modelOf, type Run } from "../page/state";
import { whole } from "../panels/numbers";
import { deskOf, generate, redo, rewrite, undo } from "./generating";
import { piecesOf } from "./ranges";

/** After the last change, in milliseconds. */
const COUNTED_AFTER = 700;

export function Notebook({ conversation, run }: { conversation: Conversation; run: Run | undefined }) {
  const { text, written } = conversation.notebook;
  const desk = deskOf(conversation);
  const model = modelOf(conversation);
  const isWriting = run !== undefined;
  const scroller = useRef<HTMLDivElement>(null);
  const field = useRef<HTMLTextAreaElement>(null);
  const tokens = useTokens(text, isWriting);

  useLayoutEffect(() => field.current?.focus({ preventScroll: true }), []);
  useLayoutEffect(() => {
    if (isWriting && scroller.current) scroller.current.scrollTop = scroller.current.scrollHeight;
  }, [text, isWriting]);

  const onInput = (event: { currentTarget: HTMLTextAreaElement }) => {
    rewrite(conversation, event.currentTarget.value);
    touchSoon(conversation);
  };
  // The text as it is now, though it may not have been drawn.
  const start = () => {
    if (conversation.notebook.text !== "") void generate(conversation);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    start();
  };
  const onSubmit = (event: Event) => {
    event.preventDefault();
    if (isWriting) stop();
    else start();
  };
  const figures = [...(desk.figures ? figuresInWords(desk.figures) : []), desk.end].filter(Boolean).join(" · ");
  return (
    <main class="notebook">
      <div id="scroller" ref={scroller}>
        <div class="notebook-head">
          {model?.chats !== false && <ModeChoice conversation={conversation} />}
          <p class="hint" id="notebook-hint">
            {model?.chats === false ? "This model has no chat template: it continues the text that you write." : "The model continues the text that you write."} What it wrote is tinted.
          </p>
        </div>
        <div class="sheet">
          <div class="sheet-text tints" aria-hidden="true">
            {piecesOf(text, written).map((piece) => (piece.isWritten ? <mark>{piece.text}</mark> : piece.text))}
            {"\u200b"}
          </div>
          <textarea ref={field} id="notebook" class="sheet-text" aria-label="Text" aria-describedby="notebook-hint" placeholder="Write the beginning of a text" value={text} readOnly={isWriting} onInput={onInput} onKeyDown={onKeyDown} />
        </div>
        {desk.failure !== null && (
          <p class="failure" role="alert">
            {desk.failure}
          </p>
        )}
      </div>
      <form class="notebook-foot" onSubmit={onSubmit}>
        <button id="generate" class="primary" disabled={!isWriting && text === ""} title="Ctrl+Enter">
          {isWriting ? "Stop" : "Generate"}
        </button>
        <IconButton icon="undo" label="Undo the last generation" disabled={isWriting || desk.before.length === 0} onClick={() => undo(conversation)} />
        <IconButton icon="redo" label="Redo the generation" disabled={isWriting || desk.undone.length === 0} onClick={() => redo(conversation)} />
        <span class="figures">
          {tokens !== null && <span class="token-count">{`${whole(tokens.tokens)} of ${whole(tokens.context)} tokens`}</span>}
          {figures !== "" && <span>{figures}</span>}
        </span>
      </form>
    </main>
  );
}

/** How many tokens the text has; counted when the text has been at rest. */
function useTokens(text: string, isWriting: boolean) {
  const [tokens, setTokens] = useState<{ tokens: number; context: number } | null>(null);
  useEffect(() => {
    if (isWriting) return;
    let isCurrent = true;
    const count = async () => {
      const found = text === "" ? null : await counted(text);
      if (isCurrent) setTokens(found);
    };
    const timer = setTimeout(() => void count(), COUNTED_AFTER);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [text, isWriting]);
  return tokens;
}
