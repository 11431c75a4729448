// On a narrow window the list of conversations lies over the page as a drawer.

import { keep } from "./memory";
import { state } from "./state";
import { changed } from "./store";

const narrow = matchMedia("(max-width: 52rem)");

function isNarrow(): boolean {
  return narrow.matches;
}

export function showList(): void {
  if (isNarrow()) state.isDrawerOpen = true;
  else state.isSidebarShown = true;
  changed();
}

export function toggleList(): void {
  if (isNarrow()) {
    state.isDrawerOpen = !state.isDrawerOpen;
  } else {
    state.isSidebarShown = !state.isSidebarShown;
    keep("localStorage", "sidebar", state.isSidebarShown);
  }
  changed();
}

/** What is hidden must not take the focus. */
export function isListShown(): boolean {
  return isNarrow() ? state.isDrawerOpen : state.isSidebarShown;
}

narrow.addEventListener("change", changed);
