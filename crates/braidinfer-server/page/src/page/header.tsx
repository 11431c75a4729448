// The line at the top: the list's button, the model, the conversation, settings.

import type { Model } from "../api/models";
import { chooseModel, isSaved, remove, setMode, startAnew } from "../conversations/collection";
import { exportAsJson, exportAsMarkdown } from "../conversations/files";
import { size } from "../panels/numbers";
import { goThrough, IconButton, Menu, usePopover } from "./controls";
import { Icon } from "./icon";
import { load, unload, watchModels } from "./models";
import { isListShown, toggleList } from "./narrow";
import { openPanel } from "./panels";
import { KEYS } from "./shortcut-keys";
import { modelOf, state } from "./state";


export function Header() {
  const { conversation } = state;
  const hasSettings = Object.values(conversation.settings).some((value) => value.trim() !== "");
  return (
    <header>
      <button type="button" id="show-list" class="icon-button" aria-label="Conversations" title={`Conversations (${KEYS.list})`} aria-expanded={isListShown()} aria-controls="sidebar" onClick={toggleList}>
        <Icon name="list" />
      </button>
      <ModelPicker />
      <p class="conversation-title" title={conversation.title}>
        {conversation.title}
      </p>
      <IconButton icon="plus" label="New conversation" keys={KEYS.anew} class="narrow-only" onClick={startAnew} />
      <ConversationMenu />
      <button type="button" class={`panel-button ${hasSettings ? "in-use" : ""}`} data-panel="settings" title={`Settings (${KEYS.settings})`} aria-label="Settings" aria-expanded={state.panel === "settings"} onClick={() => openPanel("settings")}>
        <Icon name="settings" />
        <span>Settings</span>
      </button>
    </header>
  );
}

function ConversationMenu() {
  const { conversation } = state;
  const { id } = conversation;
  const isChat = conversation.mode === "chat";
  const mode = modelOf(conversation)?.chats === false ? [] : [{ label: isChat ? "Switch to notebook" : "Switch to chat", onSelect: () => setMode(isChat ? "notebook" : "chat") }];
  const saved = [
    { label: "Export as JSON", onSelect: () => void exportAsJson([id]) },
    { label: "Export as Markdown", onSelect: () => void exportAsMarkdown(id) },
    { label: "Delete", isDangerous: true, onSelect: () => void remove(id) },
  ];
  const entries = [...mode, ...(isSaved(conversation) ? saved : [])];
  return <Menu label="This conversation" entries={entries} disabled={entries.length === 0} />;
}

function ModelPicker() {
  const { models, modelsFailure } = state;
  const model = modelOf(state.conversation);
  if (model === null || modelsFailure !== null) {
    return (
      <p id="model" class={modelsFailure === null ? "plain" : "plain failed"} title={modelsFailure ?? ""}>
        {modelsFailure ?? "Looking for the model …"}
      </p>
    );
  }
  // One model that cannot be unloaded is only named.
  if (models?.length === 1) {
    return (
      <p id="model" class="plain" title={model.name}>
        <span class="name">{model.name}</span>
        {model.state !== null && model.state !== "loaded" && <span class="model-state">{stateInWords(model)}</span>}
      </p>
    );
  }
  return <ModelList models={models ?? []} chosen={model} />;
}

function ModelList({ models, chosen }: { models: Model[]; chosen: Model }) {
  const popover = usePopover(watchModels);
  return (
    <div class="model-picker">
      <button ref={popover.button} type="button" id="model" aria-haspopup="dialog" aria-expanded={popover.isOpen} title={`${chosen.name} (${KEYS.model})`} onClick={popover.toggle}>
        <Dot model={chosen} />
        <span class="name">{chosen.name}</span>
        <Icon name="down" />
      </button>
      <div ref={popover.panel} popover="auto" role="dialog" aria-label="Models" class="popover models" onKeyDown={goThrough}>
        {popover.isOpen && (
          <ul>
            {models.map((each) => (
              <Entry key={each.name} model={each} isChosen={each === chosen} onChoose={() => (chooseModel(each.name), popover.close())} />
            ))}
          </ul>
        )}
      </div>
    </div>
  );
}

function Entry({ model, isChosen, onChoose }: { model: Model; isChosen: boolean; onChoose: () => void }) {
  const isLoaded = model.state === "loaded";
  const isOnItsWay = model.state === "loading" || model.state === "unloading";
  return (
    <li>
      <button type="button" class="choose" aria-pressed={isChosen} disabled={!model.writes} onClick={onChoose}>
        <span class="model-name">
          <Dot model={model} />
          {model.name}
        </span>
        <span class="model-state">{stateInWords(model)}</span>
        {model.error !== null && <span class="model-error">{model.error}</span>}
      </button>
      {model.state !== null && (
        <button type="button" class="quiet" disabled={isOnItsWay} aria-label={`${isLoaded ? "Unload" : "Load"} ${model.name}`} onClick={() => void (isLoaded ? unload(model.name) : load(model.name))}>
          {isLoaded ? "Unload" : "Load"}
        </button>
      )}
    </li>
  );
}

function Dot({ model }: { model: Model }) {
  return <span class={`state-dot ${model.error === null ? (model.state ?? "loaded") : "failed"}`} aria-hidden="true" />;
}

function stateInWords({ state, layers, memory, inUse, error, writes, chats, parent }: Model): string {
  const words = {
    unloaded: error === null ? "not loaded" : "could not be loaded",
    loading: layers === null ? "loading …" : `loading: ${layers[0]} of ${layers[1]} layers`,
    loaded: "loaded",
    unloading: "unloading …",
  };
  const kind = !writes ? "for embeddings only" : !chats ? "continues texts" : null;
  const use = inUse === 0 ? null : inUse === 1 ? "1 request" : `${inUse} requests`;
  const adapter = parent === null ? null : `adapter of ${parent}`;
  return [state && words[state], memory === null ? null : size(memory), use, kind, adapter].filter(Boolean).join(" · ");
}
