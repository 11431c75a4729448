// Puts the page together: panels, the key, Escape, and who answers.

import { onKeyNeeded, servedModel } from "./api.js";
import { Chat } from "./chat.js";
import { closeMetrics, openMetrics, startMetrics } from "./metrics.js";
import { openReport } from "./report.js";
import { startSettings } from "./settings.js";

const byId = (id) => document.getElementById(id);
const panel = byId("panel");
const panelButtons = [...document.querySelectorAll("[data-panel]")];

/** Between two looks at whether the model is loaded, in milliseconds. */
const LOADING_PERIOD = 2000;

const ON_OPEN = { report: openReport, metrics: openMetrics };

function openPanel(button) {
  closePanel();
  button.ariaExpanded = "true";
  byId("panel-title").textContent = button.textContent;
  byId(button.dataset.panel).hidden = false;
  panel.hidden = false;
  byId("panel-title").focus();
  ON_OPEN[button.dataset.panel]?.();
}

/** Whether one was open. */
function closePanel() {
  const button = panelButtons.find((each) => each.ariaExpanded === "true");
  if (!button) return false;
  if (panel.contains(document.activeElement)) button.focus();
  button.ariaExpanded = "false";
  byId(button.dataset.panel).hidden = true;
  panel.hidden = true;
  closeMetrics();
  return true;
}

function startPanels() {
  for (const button of panelButtons) {
    button.addEventListener("click", () => (button.ariaExpanded === "true" ? closePanel() : openPanel(button)));
  }
  byId("close-panel").addEventListener("click", closePanel);
}

/** Asks in a dialog; `null` if the person has no key. */
function askForKey(reason) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-reason").textContent = reason;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => resolve(dialog.returnValue === "use" ? field.value.trim() : null);
    dialog.addEventListener("close", answer, { once: true });
  });
}

function showModel({ name, chats }) {
  showLine(name, false);
  byId("continues").hidden = chats;
  byId("empty-title").textContent = chats ? "Ask something" : "Begin a text";
  byId("question").placeholder = chats ? "Write a message" : "Write the beginning of a text";
}

function showLine(text, failed) {
  const line = byId("model");
  line.textContent = line.title = text;
  line.classList.toggle("failed", failed);
}

/** A server may listen before it has loaded its model. */
async function findModel() {
  try {
    showModel(await servedModel());
  } catch (error) {
    showLine(error.message, true);
    if (error.status === 503) setTimeout(findModel, LOADING_PERIOD);
  }
}

onKeyNeeded(askForKey);
byId("no-key").addEventListener("click", () => byId("key-dialog").close());
startSettings();
startPanels();
startMetrics();
const chat = new Chat(showModel);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || byId("key-dialog").open) return;
  if (chat.stop() || closePanel()) event.preventDefault();
});

findModel();
