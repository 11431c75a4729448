// The list of conversations.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { IconButton, Menu } from "../page/controls";
import { Icon } from "../page/icon";
import { openPanel, showHelp } from "../page/panels";
import { KEYS } from "../page/shortcut-keys";
import { unlessSame } from "../page/same-props";
import { state, type PanelName } from "../page/state";
import { changed } from "../page/store";
import { chooseTheme, THEMES, type Theme } from "../page/theme-choice";
import { open, remove, rename, startAnew } from "./collection";
import { shownTitle, type Summary } from "./conversation";
import { searchConversations } from "./database";
import { exportAll, exportAsJson, exportAsMarkdown, importFile } from "./files";

/** After the last letter of a search, in milliseconds. */
const SEARCHED_AFTER = 150;

export interface SidebarProps {
  summaries: Summary[];
  /** The conversation that is open. */
  open: string;
  isKept: boolean | null;
  panel: PanelName | null;
  theme: Theme;
  /** Conversations in which an answer is coming. */
  answering: string;
}

/** There may be thousands of conversations: the list is not drawn again for each token of an answer. */
export const Sidebar = unlessSame<SidebarProps>((props) => {
  const [search, setSearch] = useState("");
  const [renaming, setRenaming] = useState<string | null>(null);
  const found = useSearch(search);
  const picker = useRef<HTMLInputElement>(null);
  const shown = props.summaries.filter(({ id }) => found === null || found.has(id)).sort((a, b) => b.changed - a.changed);
  const entries = [
    { label: "Import …", onSelect: () => picker.current?.click() },
    { label: "Export all as JSON", onSelect: () => void exportAll() },
  ];
  return (
    <nav id="sidebar" aria-label="Conversations">
      <div class="sidebar-head">
        <Icon name="mark" />
        <h1>Braidinfer</h1>
        <Menu label="Import and export" entries={entries} />
        <IconButton icon="close" label="Close the list" class="close-drawer" onClick={closeDrawer} />
        <input ref={picker} id="import-picker" type="file" accept=".json,.md,application/json,text/markdown" hidden tabIndex={-1} onChange={(event) => takePicked(event.currentTarget)} />
      </div>
      <button type="button" id="new-conversation" title={`New conversation (${KEYS.anew})`} onClick={startAnew}>
        <Icon name="plus" />
        New conversation
      </button>
      <div class="search">
        <Icon name="search" />
        <input id="search" type="search" placeholder="Search" aria-label="Search conversations" title={KEYS.search} value={search} onInput={(event) => setSearch(event.currentTarget.value)} onKeyDown={(event) => clearOrEnter(event, setSearch)} />
      </div>
      {props.isKept === false && <p class="warning">This browser keeps no data for this page: conversations end when you leave it. Export what you want to keep.</p>}
      <div class="list" tabIndex={-1}>
        {inGroups(shown).map(([title, summaries]) => (
          <section key={title} aria-label={title}>
            <h2>{title}</h2>
            <ul onKeyDown={goThroughTitles}>
              {summaries.map((summary) => (
                <Entry
                  key={summary.id}
                  summary={summary}
                  isOpen={summary.id === props.open}
                  isAnswering={props.answering.includes(summary.id)}
                  isRenaming={renaming === summary.id}
                  onRename={setRenaming}
                />
              ))}
            </ul>
          </section>
        ))}
        {shown.length === 0 && <p class="hint">{search.trim() === "" ? "Conversations will be listed here." : "Nothing was found."}</p>}
      </div>
      <Foot panel={props.panel} theme={props.theme} />
    </nav>
  );
});

function takePicked(picker: HTMLInputElement): void {
  for (const file of picker.files ?? []) void importFile(file);
  picker.value = "";
}

function closeDrawer(): void {
  state.isDrawerOpen = false;
  changed();
  document.getElementById("show-list")?.focus();
}

function clearOrEnter(event: KeyboardEvent, setSearch: (text: string) => void): void {
  if (event.key === "Escape" && (event.currentTarget as HTMLInputElement).value !== "") {
    event.stopPropagation();
    setSearch("");
  } else if (event.key === "ArrowDown" || event.key === "Enter") {
    event.preventDefault();
    document.querySelector<HTMLElement>("#sidebar .title")?.focus();
  }
}

/** Arrows go from title to title, past the menus. */
function goThroughTitles(event: KeyboardEvent): void {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step === undefined || !(event.target as HTMLElement).matches(".title")) return;
  const titles = [...document.querySelectorAll<HTMLElement>("#sidebar .title")];
  const next = titles[titles.indexOf(event.target as HTMLElement) + step];
  (next ?? document.getElementById("search"))?.focus();
  event.preventDefault();
}

/** The conversations in which all words of a search are found; `null` without a search. */
function useSearch(search: string): Set<string> | null {
  const [found, setFound] = useState<Set<string> | null>(null);
  useEffect(() => {
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) {
      setFound(null);
      return;
    }
    const stopper = new AbortController();
    const look = async () => {
      const ids = await searchConversations(words, stopper.signal).catch(() => new Set<string>());
      if (!stopper.signal.aborted) setFound(ids);
    };
    const timer = setTimeout(() => void look(), SEARCHED_AFTER);
    return () => {
      clearTimeout(timer);
      stopper.abort();
    };
  }, [search]);
  return found;
}

const DAY = 86_400_000;

/** By how long ago they were changed. */
function inGroups(summaries: Summary[]): [string, Summary[]][] {
  const today = new Date().setHours(0, 0, 0, 0);
  const titleOf = ({ changed }: Summary) => (changed >= today ? "Today" : changed >= today - DAY ? "Yesterday" : changed >= today - 7 * DAY ? "Last seven days" : "Earlier");
  const groups = new Map<string, Summary[]>();
  for (const summary of summaries) groups.set(titleOf(summary), [...(groups.get(titleOf(summary)) ?? []), summary]);
  return [...groups];
}

interface EntryProps {
  summary: Summary;
  isOpen: boolean;
  isAnswering: boolean;
  isRenaming: boolean;
  onRename: (id: string | null) => void;
}

const Entry = unlessSame<EntryProps>(({ summary, isOpen, isAnswering, isRenaming, onRename }) => {
  const { id } = summary;
  const entries = [
    { label: "Rename", onSelect: () => onRename(id) },
    { label: "Export as JSON", onSelect: () => void exportAsJson([id]) },
    { label: "Export as Markdown", onSelect: () => void exportAsMarkdown(id) },
    { label: "Delete", isDangerous: true, onSelect: () => void remove(id) },
  ];
  if (isRenaming) return <TitleEditor summary={summary} onDone={() => onRename(null)} />;
  return (
    <li class={isOpen ? "open" : ""}>
      <button type="button" class="title" data-conversation={id} aria-current={isOpen ? "true" : undefined} title={shownTitle(summary)} onClick={() => void open(id)}>
        {isAnswering && <span class="dot" aria-label="answering" />}
        {shownTitle(summary)}
      </button>
      <Menu label={`More for ${shownTitle(summary)}`} entries={entries} />
    </li>
  );
});

function TitleEditor({ summary, onDone }: { summary: Summary; onDone: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  // A field that is taken away loses the focus, too.
  const isDone = useRef(false);
  useLayoutEffect(() => field.current?.select(), []);
  const end = () => {
    isDone.current = true;
    onDone();
    setTimeout(() => document.querySelector<HTMLElement>(`[data-conversation="${summary.id}"]`)?.focus(), 50);
  };
  const finish = (event: Event) => {
    event.preventDefault();
    if (isDone.current || field.current === null) return;
    void rename(summary.id, field.current.value);
    end();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    end();
  };
  return (
    <li>
      <form onSubmit={finish}>
        <input ref={field} class="title-field" aria-label="Title" defaultValue={summary.title} maxLength={300} onKeyDown={onKeyDown} onBlur={finish} />
      </form>
    </li>
  );
}

function Foot({ panel, theme }: { panel: PanelName | null; theme: Theme }) {
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "system";
  const switchTheme = () => {
    chooseTheme(next);
    changed();
  };
  const names = { system: "System theme", light: "Light theme", dark: "Dark theme" };
  return (
    <div class="sidebar-foot">
      <button type="button" data-panel="report" aria-expanded={panel === "report"} onClick={() => openPanel("report")}>
        <Icon name="report" />
        Report
      </button>
      <button type="button" data-panel="metrics" aria-expanded={panel === "metrics"} onClick={() => openPanel("metrics")}>
        <Icon name="metrics" />
        Metrics
      </button>
      <button type="button" id="help" onClick={showHelp}>
        <Icon name="help" />
        Help
      </button>
      <button type="button" id="theme" title={`Switch to: ${names[next]}`} onClick={switchTheme}>
        <Icon name="theme" />
        {names[theme]}
      </button>
    </div>
  );
}
