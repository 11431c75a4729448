// The page as a whole.

import { render } from "preact";
import { useEffect, useLayoutEffect } from "preact/hooks";

import { Chat } from "./chat/chat";
import { isNotebook, startCollection } from "./conversations/collection";
import { Sidebar } from "./conversations/sidebar";
import { Notebook } from "./notebook/notebook";
import { dismiss } from "./page/announcements";
import { IconButton } from "./page/controls";
import { Header } from "./page/header";
import { Help } from "./page/help";
import { lookAtModels } from "./page/models";
import { isListShown } from "./page/narrow";
import { Questions, startQuestions } from "./page/questions";
import { startShortcuts } from "./page/shortcuts";
import { currentRun, state, type Notice } from "./page/state";
import { changed, useChanges } from "./page/store";
import { currentTheme } from "./page/theme-choice";
import { Panel } from "./panels/panel";

function Page() {
  useChanges();
  const { conversation } = state;
  const run = currentRun();
  useEffect(() => {
    document.title = conversation.title === "" ? "Braidinfer" : `${conversation.title} – Braidinfer`;
  }, [conversation.title]);
  useLayoutEffect(() => {
    document.body.classList.toggle("answering", run !== undefined);
  }, [run !== undefined]);
  return (
    <div id="page" class={`${isListShown() ? "with-list" : ""} ${state.panel === null ? "" : "with-panel"}`}>
      {isListShown() && <Sidebar summaries={state.summaries} open={conversation.id} isKept={state.isKept} panel={state.panel} theme={currentTheme()} answering={[...state.runs.keys()].join(" ")} />}
      {state.isDrawerOpen && <div class="shade" onClick={closeDrawer} />}
      <Header />
      {isNotebook(conversation) ? <Notebook key={conversation.id} conversation={conversation} run={run} /> : <Chat conversation={conversation} run={run} />}
      {state.panel !== null && <Panel name={state.panel} />}
      {state.notice !== null && <NoticeLine notice={state.notice} />}
      <div id="announcement" class="unseen" role="status">
        {state.announcement}
      </div>
      <Questions />
      {state.dialog === "help" && <Help />}
    </div>
  );
}

function closeDrawer(): void {
  state.isDrawerOpen = false;
  changed();
}

function NoticeLine({ notice }: { notice: Notice }) {
  const undo = () => {
    notice.undo?.();
    dismiss(notice);
  };
  return (
    <div class={`notice ${notice.isFailure ? "failed" : ""}`} role={notice.isFailure ? "alert" : "status"}>
      <span>{notice.text}</span>
      {notice.undo && (
        <button type="button" class="quiet" onClick={undo}>
          Undo
        </button>
      )}
      <IconButton icon="close" label="Dismiss" onClick={() => dismiss(notice)} />
    </div>
  );
}

startQuestions();
startShortcuts();
void startCollection().then(() => {
  document.querySelector("noscript")?.remove();
  render(<Page />, document.body);
});
void lookAtModels();
// The server may have been started again meanwhile.
document.addEventListener("visibilitychange", () => !document.hidden && void lookAtModels());
