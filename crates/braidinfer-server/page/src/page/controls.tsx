// Buttons, menus and questions that many parts of the page use.

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { copyText } from "./clipboard";
import { Icon, type IconName } from "./icon";

interface IconButtonProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  class?: string;
  disabled?: boolean;
  keys?: string;
}

/** A button that shows an icon; its name is read and shown on hovering. */
export function IconButton({ icon, label, onClick, class: name = "", disabled = false, keys }: IconButtonProps) {
  return (
    <button type="button" class={`icon-button ${name}`} aria-label={label} title={keys ? `${label} (${keys})` : label} disabled={disabled} onClick={onClick}>
      <Icon name={icon} />
    </button>
  );
}

const COPIED_FOR = 2000;

/** Copies what `text()` says when it is pressed. */
export function CopyButton({ text, label }: { text: () => string; label: string }) {
  const [done, setDone] = useState<boolean | null>(null);
  const copy = async () => {
    setDone(await copyText(text()));
    setTimeout(() => setDone(null), COPIED_FOR);
  };
  const word = done === null ? "Copy" : done ? "Copied" : "Not copied";
  return (
    <button type="button" class="quiet" aria-label={done === null ? label : word} onClick={() => void copy()}>
      {word}
    </button>
  );
}

export interface MenuEntry {
  label: string;
  onSelect: () => void;
  isDangerous?: boolean;
}

/** A button that opens a list of choices. Escape closes it, arrows go through it. */
export function Menu({ label, entries, icon = "more", disabled = false }: { label: string; entries: MenuEntry[]; icon?: IconName; disabled?: boolean }) {
  const popover = usePopover();
  const choose = (entry: MenuEntry) => {
    popover.close();
    entry.onSelect();
  };
  return (
    <span class="menu">
      <button ref={popover.button} type="button" class="icon-button" aria-label={label} title={label} aria-haspopup="menu" aria-expanded={popover.isOpen} disabled={disabled} onClick={popover.toggle}>
        <Icon name={icon} />
      </button>
      <div ref={popover.panel} popover="auto" role="menu" aria-label={label} class="popover" onKeyDown={goThrough}>
        {popover.isOpen &&
          entries.map((entry) => (
            <button key={entry.label} type="button" role="menuitem" class={entry.isDangerous ? "dangerous" : ""} onClick={() => choose(entry)}>
              {entry.label}
            </button>
          ))}
      </div>
    </span>
  );
}

/** Arrows go from one button of a list to the next. */
export function goThrough(event: KeyboardEvent): void {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step === undefined) return;
  const buttons = [...(event.currentTarget as HTMLElement).querySelectorAll<HTMLElement>("button:not(:disabled)")];
  const at = buttons.indexOf(document.activeElement as HTMLElement);
  buttons.at((at + step) % buttons.length)?.focus();
  event.preventDefault();
}

/** A panel that belongs to a button, and closes when the person does something else. */
export function usePopover(onToggle?: (isOpen: boolean) => void) {
  const button = useRef<HTMLButtonElement>(null);
  const panel = useRef<HTMLDivElement>(null);
  const [isOpen, setOpen] = useState(false);
  useEffect(() => {
    const element = panel.current;
    const listen = (event: Event) => {
      const opens = (event as ToggleEvent).newState === "open";
      setOpen(opens);
      onToggle?.(opens);
    };
    // What had the focus in a closed panel is gone.
    const returnFocus = (event: Event) => {
      const { activeElement } = document;
      if ((event as ToggleEvent).newState === "closed" && (activeElement === document.body || element?.contains(activeElement))) button.current?.focus();
    };
    element?.addEventListener("beforetoggle", listen);
    element?.addEventListener("toggle", returnFocus);
    return () => {
      element?.removeEventListener("beforetoggle", listen);
      element?.removeEventListener("toggle", returnFocus);
    };
  }, []);
  useLayoutEffect(() => {
    if (!isOpen || !button.current || !panel.current) return;
    putBeside(button.current, panel.current);
    panel.current.querySelector<HTMLElement>("button:not(:disabled)")?.focus();
  }, [isOpen]);
  const close = () => {
    panel.current?.hidePopover();
    button.current?.focus();
  };
  return { button, panel, isOpen, toggle: () => panel.current?.togglePopover(), close };
}

const GAP = 4;

/** Below the button if there is room, else above it; never outside of the window. */
function putBeside(button: HTMLElement, panel: HTMLElement): void {
  const from = button.getBoundingClientRect();
  const { width, height } = panel.getBoundingClientRect();
  const below = from.bottom + GAP;
  const top = below + height <= innerHeight - GAP ? below : Math.max(GAP, from.top - GAP - height);
  const left = Math.min(from.left, innerWidth - width - 2 * GAP);
  panel.style.top = `${top}px`;
  panel.style.left = `${Math.max(2 * GAP, left)}px`;
}

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  class?: string;
  /** Whether it is to be read from the beginning, before its first control is used. */
  isRead?: boolean;
}

/** A dialog over the page. When it closes, the browser gives the focus back. */
export function Dialog({ title, onClose, children, class: name = "", isRead = false }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} class={name} aria-labelledby="dialog-title" onClose={onClose} onCancel={(event) => event.stopPropagation()}>
      <h2 id="dialog-title" tabIndex={-1} autofocus={isRead}>
        {title}
      </h2>
      {children}
    </dialog>
  );
}
