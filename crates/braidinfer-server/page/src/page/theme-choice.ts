// Light, dark, or as the system has it. The script theme.js applies what is remembered.

const KEY = "braidinfer.theme";

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

export function currentTheme(): Theme {
  const { theme } = document.documentElement.dataset;
  return theme === "light" || theme === "dark" ? theme : "system";
}

export function chooseTheme(theme: Theme): void {
  const value = theme === "system" ? "" : theme;
  document.documentElement.dataset.theme = value;
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // Storage may be forbidden; the choice then lasts until the page is left.
  }
}
