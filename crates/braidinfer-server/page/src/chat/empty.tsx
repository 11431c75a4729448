// What is shown before anything was said.

import { setMode } from "../conversations/collection";
import type { Conversation } from "../conversations/conversation";

export function EmptyConversation({ conversation }: { conversation: Conversation }) {
  return (
    <div id="empty">
      <h2>Ask something</h2>
      <ModeChoice conversation={conversation} />
      <p class="hint">A notebook is one text that you and the model write together.</p>
      <p>Your words go to this server and nowhere else.</p>
      <p class="keys">
        <kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> starts a new line, <kbd>Esc</kbd> stops an answer.
      </p>
    </div>
  );
}

export function ModeChoice({ conversation }: { conversation: Conversation }) {
  return (
    <div class="segments" role="group" aria-label="Kind of conversation">
      <button type="button" aria-pressed={conversation.mode === "chat"} onClick={() => setMode("chat")}>
        Chat
      </button>
      <button type="button" aria-pressed={conversation.mode === "notebook"} onClick={() => setMode("notebook")}>
        Notebook
      </button>
    </div>
  );
}
