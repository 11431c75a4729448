// A classic script in the head: it runs before the first paint, so that a remembered theme does not flash.
(() => {
  const KEY = "braidinfer.theme";
  const root = document.documentElement;
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const systemTheme = () => (darkSystem.matches ? "dark" : "light");
  const otherTheme = () => ((root.dataset.theme || systemTheme()) === "dark" ? "light" : "dark");

  /** A choice that is the system's own is none: from then on the page follows the system again. */
  function choose(theme) {
    root.dataset.theme = theme === systemTheme() ? "" : theme;
    try {
      localStorage.setItem(KEY, root.dataset.theme);
    } catch {
      // Storage may be forbidden; the choice then lasts until the page is left.
    }
  }

  function nameButton(button) {
    button.title = button.ariaLabel = `Switch to the ${otherTheme()} theme`;
  }

  try {
    root.dataset.theme = localStorage.getItem(KEY) ?? "";
  } catch {
    root.dataset.theme = "";
  }

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
