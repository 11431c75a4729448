// The settings of a conversation, and those that new ones begin with.

import { useState } from "preact/hooks";

import { forgetKey, hasKey } from "../api/requests";
import { touchSoon } from "../conversations/collection";
import type { Settings } from "../conversations/conversation";
import { notify } from "../page/announcements";
import { keep } from "../page/memory";
import { modelOf, state } from "../page/state";
import { changed } from "../page/store";
import { faultIn, NUMBER_FIELDS, THINKING_BUDGET, type NumberField } from "./fields";

function put(settings: Settings): void {
  const { conversation } = state;
  conversation.settings = settings;
  touchSoon(conversation);
  changed();
}

function set(name: string, value: string): void {
  const { [name]: _, ...others } = state.conversation.settings;
  put(value === "" ? others : { ...others, [name]: value });
}

export function SettingsPanel() {
  const { conversation, defaults } = state;
  const { settings } = conversation;
  const model = modelOf(conversation);
  const areDefaults = isSame(settings, defaults);
  const makeDefaults = () => {
    state.defaults = { ...settings };
    keep("localStorage", "settings", state.defaults);
    notify({ text: "New conversations begin with these settings." });
  };
  return (
    <form id="settings" onSubmit={(event) => event.preventDefault()}>
      <p class="hint">For this conversation. An empty field leaves the choice to the model; grey is what it chooses.</p>
      <TextSetting name="system" label="System prompt" rows={4} placeholder="None" />
      <fieldset>
        <legend>Sampling</legend>
        {NUMBER_FIELDS.map((field) => (
          <NumberSetting key={field.name} field={field} placeholder={placeholderOf(field, model?.sampling ?? {})} />
        ))}
        <TextSetting name="stop" label="Stop texts, one on each line" rows={2} placeholder="None" />
      </fieldset>
      {model?.thinks && (
        <fieldset>
          <legend>Thinking</legend>
          <label class="row">
            Think before answering
            <select name="enable_thinking" value={settings.enable_thinking ?? ""} onChange={(event) => set("enable_thinking", event.currentTarget.value)}>
              <option value="">as the model does</option>
              <option value="on">yes</option>
              <option value="off">no</option>
            </select>
          </label>
          <NumberSetting field={THINKING_BUDGET} placeholder="no limit" />
        </fieldset>
      )}
      {model?.chats !== false && (
        <fieldset>
          <legend>Form and tools</legend>
          <TextSetting name="schema" label="JSON schema of the answer" rows={3} placeholder={'{"type": "object", …}'} isCode />
          <TextSetting name="tools" label="Tools, as a JSON list" rows={3} placeholder={'[{"type": "function", "function": {"name": …}}]'} isCode />
        </fieldset>
      )}
      <div class="choices">
        <button type="button" class="quiet" onClick={() => put({})}>
          Clear all settings
        </button>
        <button type="button" class="quiet" disabled={areDefaults} onClick={makeDefaults}>
          Use for new conversations
        </button>
      </div>
      <p class="hint">{areDefaults ? "New conversations begin with these settings." : "New conversations begin with other settings."}</p>
      {!areDefaults && (
        <button type="button" class="quiet" onClick={() => put({ ...defaults })}>
          Take those of new conversations
        </button>
      )}
      <KeySetting />
    </form>
  );
}

function isSame(a: Settings, b: Settings): boolean {
  return Object.keys({ ...a, ...b }).every((name) => (a[name] ?? "") === (b[name] ?? ""));
}

function placeholderOf({ name }: NumberField, sampling: Record<string, number>): string {
  const value = sampling[name];
  if (value !== undefined) return String(Number(value.toPrecision(6)));
  // Without a limit there is no number.
  if (name === "top_k" && Object.keys(sampling).length > 0) return "all";
  return { max_completion_tokens: "no limit", seed: "random" }[name] ?? "model's own";
}

function NumberSetting({ field: { name, label, whole }, placeholder }: { field: NumberField; placeholder: string }) {
  const { settings } = state.conversation;
  const fault = faultIn(name, settings);
  return (
    <>
      <label class="row">
        {label}
        <input name={name} inputMode={whole ? "numeric" : "decimal"} autocomplete="off" placeholder={placeholder} value={settings[name] ?? ""} aria-invalid={fault !== null} aria-describedby={fault ? `${name}-fault` : undefined} onInput={(event) => set(name, event.currentTarget.value)} />
      </label>
      <Fault name={name} fault={fault} />
    </>
  );
}

function TextSetting({ name, label, rows, placeholder, isCode = false }: { name: string; label: string; rows: number; placeholder: string; isCode?: boolean }) {
  const { settings } = state.conversation;
  const fault = faultIn(name, settings);
  return (
    <>
      <label class="column">
        {label}
        <textarea name={name} rows={rows} class={isCode ? "mono" : ""} spellcheck={!isCode} placeholder={placeholder} value={settings[name] ?? ""} aria-invalid={fault !== null} aria-describedby={fault ? `${name}-fault` : undefined} onInput={(event) => set(name, event.currentTarget.value)} />
      </label>
      <Fault name={name} fault={fault} />
    </>
  );
}

function Fault({ name, fault }: { name: string; fault: string | null }) {
  if (fault === null) return null;
  return (
    <p id={`${name}-fault`} class="fault" role="alert">
      {fault}
    </p>
  );
}

function KeySetting() {
  const [, setForgotten] = useState(false);
  if (!hasKey()) return null;
  const forget = () => {
    forgetKey();
    setForgotten(true);
    notify({ text: "The API key is forgotten." });
  };
  return (
    <fieldset>
      <legend>API key</legend>
      <p class="hint">This browser keeps a key for this server.</p>
      <button type="button" class="quiet" onClick={forget}>
        Forget the key
      </button>
    </fieldset>
  );
}
