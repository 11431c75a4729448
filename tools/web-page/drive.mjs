// Drives the page of a running server in Chromium and checks what a person relies on.
// node drive.mjs http://127.0.0.1:8099/ SCREENSHOT_FOLDER [WORD of the steps to run]

import { finish } from "./browser.mjs";

for (const part of ["answers", "turns", "conversations", "models", "settings", "rendering", "attachments", "notebook", "keyboard", "access", "panels", "phone"]) {
  await import(`./steps/${part}.mjs`);
}
await finish();
