// What screen readers are told, and notices that everybody sees.

import { state, type Notice } from "./state";
import { changed } from "./store";

/** What was said is soon gone, so that nobody reads it twice. */
const ANNOUNCED_FOR = 5000;
const SHOWN_FOR = 15_000;

/** For screen readers: once for each answer, not for each token. */
export function announce(text: string): void {
  state.announcement = text;
  changed();
  setTimeout(() => {
    if (state.announcement !== text) return;
    state.announcement = "";
    changed();
  }, ANNOUNCED_FOR);
}

export function notify(notice: Notice): void {
  state.notice = notice;
  changed();
  setTimeout(() => dismiss(notice), SHOWN_FOR);
}

export function dismiss(notice: Notice): void {
  if (state.notice !== notice) return;
  state.notice = null;
  changed();
}
