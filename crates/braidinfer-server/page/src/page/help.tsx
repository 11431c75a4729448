// Help: shortcuts, and what the page keeps where.

import { Dialog } from "./controls";
import { closeHelp } from "./panels";
import { SHORTCUTS } from "./shortcuts";

export function Help() {
  return (
    <Dialog title="Help" onClose={closeHelp} class="help" isRead>
      <h3>Keyboard</h3>
      <dl class="shortcuts">
        {SHORTCUTS.map(([keys, does]) => (
          <div key={keys}>
            <dt>{keys.split("+").map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
      <h3>Words</h3>
      <p>
        A question or an answer that you edit, and an answer that you have written again, becomes another <b>version</b>; the arrows beside <i>1/2</i> go from one to the
        other. A <b>notebook</b> is one text that the model continues, without questions and answers.
      </p>
      <h3>Where things are</h3>
      <p>Conversations are kept in this browser only. What you ask goes to this server, and nowhere else; images and links of an answer are never fetched.</p>
      <p>
        <a href="licenses.txt" target="_blank" rel="noopener">
          Licences of the software in this page
        </a>
      </p>
      <div class="choices">
        <button type="button" class="primary" onClick={(event) => event.currentTarget.closest("dialog")?.close()}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
