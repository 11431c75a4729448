// The system prompt and how tokens are chosen. Names of fields are those of the API.

import { keep, recall } from "./memory.js";

const form = document.getElementById("settings");
const fields = [...form.querySelectorAll("[name]")];
const button = document.querySelector('[data-panel="settings"]');

export function startSettings() {
  const kept = recall("localStorage", "settings", {});
  for (const field of fields) field.value = kept[field.name] ?? "";
  markButton();
  form.addEventListener("input", keepAll);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The event comes before the fields are empty.
  form.addEventListener("reset", () => setTimeout(keepAll));
}

export function systemPrompt() {
  return form.elements.system.value.trim();
}

/** Only what was set: the rest is the server's choice. */
export function sampling() {
  const set = fields.filter((field) => field.type === "number" && field.value !== "");
  return Object.fromEntries(set.map((field) => [field.name, Number(field.value)]));
}

function keepAll() {
  const set = fields.filter((field) => field.value !== "");
  keep("localStorage", "settings", Object.fromEntries(set.map((field) => [field.name, field.value])));
  markButton();
}

function markButton() {
  button.classList.toggle("in-use", fields.some((field) => field.value.trim() !== ""));
}
