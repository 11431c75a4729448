// Which panel is open, and the help.

import { state, type PanelName } from "./state";
import { changed } from "./store";

/** Opens a panel, or closes it if it is open. */
export function openPanel(name: PanelName): void {
  if (state.panel === name) {
    closePanel();
    return;
  }
  state.panel = name;
  state.isDrawerOpen = false;
  changed();
}

/** Whether one was open. The focus goes back to the button that opens it. */
export function closePanel(): boolean {
  const { panel } = state;
  if (panel === null) return false;
  const hadFocus = document.getElementById("panel")?.contains(document.activeElement);
  state.panel = null;
  changed();
  const button = document.querySelector<HTMLElement>(`[data-panel="${panel}"]`);
  if (hadFocus) (button?.checkVisibility({ visibilityProperty: true }) ? button : document.getElementById("question"))?.focus();
  return true;
}

export function showHelp(): void {
  state.dialog = "help";
  changed();
}

export function closeHelp(): void {
  state.dialog = null;
  changed();
}
