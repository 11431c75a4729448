// A classic script in the head: it runs before the first paint, so that a remembered theme does not flash.

try {
  document.documentElement.dataset.theme = localStorage.getItem("braidinfer.theme") ?? "";
} catch {
  document.documentElement.dataset.theme = "";
}
