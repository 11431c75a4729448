// The names of the shortcuts. Browsers on macOS write signs with Option, so that it is another pair of keys there.

export const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

const withModifier = (letter: string) => (isMac ? `Ctrl+Shift+${letter}` : `Alt+${letter}`);

export const KEYS = {
  anew: withModifier("N"),
  search: withModifier("K"),
  settings: withModifier("O"),
  model: withModifier("P"),
  composer: withModifier("I"),
  copy: withModifier("C"),
  regenerate: withModifier("G"),
  earlier: withModifier("J"),
  later: withModifier("L"),
  list: withModifier("U"),
};
