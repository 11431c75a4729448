// Icons as strokes.

const PATHS = {
  mark: "M8 2c0 5 8 5 8 10s-8 5-8 10M16 2c0 2-1 3-2.5 4.2M10.5 10C9 11 8 11.5 8 12c0 2 1 3 2.5 4.2M13.5 18.5C15 19.5 16 20.5 16 22",
  list: "M4 6h16M4 12h16M4 18h16",
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14zM16 16l4.5 4.5",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5a2 2 0 1 0 0 4a2 2 0 0 0 0-4zM8 15a2 2 0 1 0 0 4a2 2 0 0 0 0-4z",
  report: "M12 3l8 3v6c0 4.5-3.5 7.5-8 9-4.5-1.5-8-4.5-8-9V6zM8.5 12l2.5 2.5 4.5-5",
  metrics: "M3 13h4l3-8 4 14 3-6h4",
  help: "M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18zM9.5 9.5a2.5 2.5 0 1 1 3.6 2.2c-.8.4-1.1.9-1.1 1.8M12 16.8v.2",
  theme: "M12 4a8 8 0 1 0 0 16a8 8 0 0 0 0-16zM12 4v16M12 8h3.8M12 12h7.5M12 16h5",
  close: "M6 6l12 12M18 6L6 18",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  down: "M6 9l6 6 6-6",
  toEnd: "M12 5v14M6 13l6 6 6-6",
  before: "M15 6l-6 6 6 6",
  next: "M9 6l6 6-6 6",
  attach: "M19 11.5l-7.4 7.4a4.6 4.6 0 0 1-6.5-6.5l7.8-7.8a3.1 3.1 0 0 1 4.4 4.4l-7.5 7.5a1.5 1.5 0 0 1-2.2-2.2l6.7-6.6",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M19 8a8 8 0 1 0 1 5M20 4v5h-5",
  play: "M8 5l10 7-10 7z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  branch: "M7 4v16M7 13c6 0 10-2 10-7M14 8l3-3 3 3",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  tool: "M14.5 6.5a4 4 0 0 1 5-1l-2.6 2.6 1 1L20.5 6.500a4 4 0 0 1-5.300 5L8 18.700a1.900 1.900 0 0 1-2.700-2.700l7.200-7.200a4 4 0 0 1 2-2.300z",
  undo: "M9 7L4 12l5 5M4 12h10a5 5 0 0 1 0 10h-2",
  redo: "M15 7l5 5-5 5M20 12H10a5 5 0 0 0 0 10h2",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg viewBox="0 0 24 24" aria-hidden="true" class={`icon icon-${name}`}>
      <path d={PATHS[name]} />
    </svg>
  );
}
