// A classic script in the head: it runs before the first paint, so that a remembered theme does not flash.
(() => {
  const KEY = "braidinfer.theme";
  const root = document.documentElement;
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const systemTheme = () => (darkSystem.matches ? "dark" : "light");
  const otherTheme = () => ((root.dataset.theme ?? systemTheme()) === "dark" ? "light" : "dark");

  function remembered() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function remember(theme) {
    try {
      theme ? localStorage.setItem(KEY, theme) : localStorage.removeItem(KEY);
    } catch {
      // Storage may be forbidden; the choice then lasts until the page is left.
    }
  }

  /** A choice that is the system's own is none: from then on the page follows the system again. */
  function choose(theme) {
    const choice = theme === systemTheme() ? null : theme;
    choice ? (root.dataset.theme = choice) : delete root.dataset.theme;
    remember(choice);
  }

  function nameButton(button) {
    button.title = button.ariaLabel = `Switch to the ${otherTheme()} theme`;
  }

  const theme = remembered();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    nameButton(button);
    darkSystem.addEventListener("change", () => nameButton(button));
    button.addEventListener("click", () => {
      choose(otherTheme());
      nameButton(button);
    });
  });
})();
