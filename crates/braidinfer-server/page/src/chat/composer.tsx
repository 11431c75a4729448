// Where the person writes a question and attaches files.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import type { AttachedFile, Conversation } from "../conversations/conversation";
import { shownBranch } from "../conversations/tree";
import { announce, notify } from "../page/announcements";
import { Icon } from "../page/icon";
import { IconButton } from "../page/controls";
import { modelOf, state } from "../page/state";
import { changed } from "../page/store";
import { whole } from "../panels/numbers";
import { ask, stop } from "./answering";
import { counted, readAttachment } from "./attachments";
import { draftOf, keepDraft } from "./drafts";
import { fenced } from "./messages";

/** Files that are dropped anywhere on the conversation come here. */
let takeFiles: (files: Iterable<File>) => void = () => {};

export function attach(files: Iterable<File>): void {
  takeFiles(files);
}

export function fitHeight(field: HTMLTextAreaElement | null): void {
  if (field === null) return;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

/** Screen keyboards have no Shift+Enter, so there Enter starts a line. */
export function isSendingKey(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(hover: none) and (pointer: coarse)").matches;
}

export function Composer({ conversation, isAnswering }: { conversation: Conversation; isAnswering: boolean }) {
  const [draft, setDraft] = useState(() => draftOf(conversation));
  const [context, setContext] = useState<number | null>(null);
  const latest = useRef(draft);
  const field = useRef<HTMLTextAreaElement>(null);
  const picker = useRef<HTMLInputElement>(null);

  const put = (fields: Partial<typeof draft>) => {
    latest.current = { ...latest.current, ...fields };
    keepDraft(conversation, latest.current);
    setDraft(latest.current);
  };
  takeFiles = (files) => void takeAll([...files]);
  const takeAll = async (files: File[]) => {
    for (const file of files) {
      try {
        await take(await readAttachment(file));
      } catch (error) {
        notify({ text: (error as Error).message, isFailure: true });
      }
    }
    field.current?.focus();
  };
  const take = async (file: AttachedFile) => {
    put({ files: [...latest.current.files, file] });
    announce(`Attached ${file.name}`);
    const count = await counted(fenced(file));
    if (count === null) return;
    setContext(count.context);
    put({ files: latest.current.files.map((each) => (each === file ? { ...file, tokens: count.tokens } : each)) });
  };

  useLayoutEffect(() => fitHeight(field.current), [draft.text]);
  useLayoutEffect(() => {
    if (!matchMedia("(pointer: coarse)").matches) field.current?.focus();
  }, []);
  useEffect(() => {
    const fit = () => fitHeight(field.current);
    addEventListener("resize", fit);
    return () => removeEventListener("resize", fit);
  }, []);

  const send = () => {
    const { text, files } = latest.current;
    if (isAnswering || (text.trim() === "" && files.length === 0)) return;
    put({ text: "", files: [] });
    ask(text.trim(), files);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (isSendingKey(event)) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && latest.current.text === "" && !isAnswering) {
      editLastQuestion(conversation);
      event.preventDefault();
    }
  };
  const onPaste = (event: ClipboardEvent) => {
    const files = event.clipboardData?.files;
    if (!files?.length) return;
    event.preventDefault();
    void takeAll([...files]);
  };
  const onSubmit = (event: Event) => {
    event.preventDefault();
    if (isAnswering) stop();
    else send();
  };
  return (
    <form id="composer" onSubmit={onSubmit}>
      {draft.files.length > 0 && <Chips files={draft.files} onRemove={(file) => put({ files: latest.current.files.filter((each) => each !== file) })} />}
      <TooLong conversation={conversation} files={draft.files} context={context} />
      <div class="composer-row">
        <input ref={picker} id="file-picker" type="file" multiple hidden tabIndex={-1} onChange={(event) => takePicked(event.currentTarget)} />
        <IconButton icon="attach" label="Attach files" onClick={() => picker.current?.click()} />
        <label class="unseen" for="question">
          Message
        </label>
        <textarea ref={field} id="question" rows={1} placeholder="Write a message" value={draft.text} onInput={(event) => put({ text: event.currentTarget.value })} onKeyDown={onKeyDown} onPaste={onPaste} />
        <button id="send" class="primary">
          {isAnswering ? "Stop" : "Send"}
        </button>
      </div>
    </form>
  );
}

function takePicked(picker: HTMLInputElement): void {
  attach([...(picker.files ?? [])]);
  // So that the same file can be picked again.
  picker.value = "";
}

function editLastQuestion(conversation: Conversation): void {
  const question = shownBranch(conversation).findLast(({ role }) => role === "user");
  if (!question) return;
  state.editing = question.id;
  changed();
}

export function Chips({ files, onRemove }: { files: AttachedFile[]; onRemove?: (file: AttachedFile) => void }) {
  return (
    <ul class="chips" aria-label="Attached files">
      {files.map((file) => (
        <li key={file.name}>
          <Icon name="file" />
          <span class="chip-name">{file.name}</span>
          {file.tokens !== null && <span class="chip-tokens">{whole(file.tokens)} tokens</span>}
          {onRemove && <IconButton icon="close" label={`Remove ${file.name}`} onClick={() => onRemove(file)} />}
        </li>
      ))}
    </ul>
  );
}

/** Whether what is attached fits into the context beside what was said. */
function TooLong({ conversation, files, context }: { conversation: Conversation; files: AttachedFile[]; context: number | null }) {
  const most = modelOf(conversation)?.context ?? context;
  const attached = files.reduce((sum, { tokens }) => sum + (tokens ?? 0), 0);
  if (most === null || attached === 0) return null;
  const figures = shownBranch(conversation).findLast((turn) => turn.figures !== null)?.figures;
  const said = (figures?.promptTokens ?? 0) + (figures?.tokens ?? 0);
  if (attached + said <= most) return null;
  const before = said > 0 ? `, after ${whole(said)} of the conversation` : "";
  return (
    <p class="warning" role="alert">
      This does not fit: the files have {whole(attached)} tokens{before}, and the model reads at most {whole(most)}.
    </p>
  );
}
