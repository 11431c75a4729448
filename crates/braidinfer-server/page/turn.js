// One question with its answer.

import { copyButton, create } from "./elements.js";
import { showMarkdown } from "./markdown.js";
import { rate, seconds } from "./numbers.js";

/** Figures change this often while an answer arrives, in milliseconds: faster could not be read. */
const CALM = 500;

/** What a model thought, and what it said, where the server does not tell them apart. Some chat templates open the thought
 * themselves, before the answer begins. */
function splitThought(text) {
  const found = /^\s*(?:<think>)?([^]*?)<\/think>([^]*)$/.exec(text) ?? /^\s*<think>([^]*)()$/.exec(text);
  return found === null ? { thought: "", said: text } : { thought: found[1].trim(), said: found[2].trimStart() };
}

/** What a model thought, and what it said. */
export function partsOf({ thought, answer }) {
  return thought ? { thought, said: answer } : splitThought(answer);
}

export class TurnView {
  /** `turn` is { question, thought, answer, figures, failure }; `again()` has it answered anew. */
  constructor(turn, again) {
    this.turn = turn;
    this.figuresShownAt = 0;
    this.thoughtTitle = create("summary");
    this.thought = create("p");
    this.thoughts = create("details", { className: "thoughts" }, this.thoughtTitle, this.thought);
    this.said = create("div", { className: "said" });
    this.waiting = create("p", { className: "waiting", ariaLabel: "Waiting" }, create("i"), create("i"), create("i"));
    this.figures = create("span", { className: "figures" });
    this.copy = copyButton(() => partsOf(turn).said);
    this.again = create("button", { type: "button", className: "quiet again", textContent: "Regenerate", onclick: again });
    this.foot = create("div", { className: "foot" }, this.figures, this.copy, this.again);
    this.failure = create("p", { className: "failure", role: "alert" });
    this.element = create(
      "article",
      { className: "turn" },
      create("h2", { className: "unseen", textContent: "You" }),
      create("p", { className: "question", textContent: turn.question }),
      create("h2", { className: "unseen", textContent: "Answer" }),
      create("div", { className: "answer" }, this.thoughts, this.said, this.waiting, this.failure, this.foot),
    );
    this.show();
  }

  /** At most once for each frame. */
  showSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.show();
    });
  }

  show() {
    const { answer, failure, arriving } = this.turn;
    const { thought, said } = partsOf(this.turn);
    this.element.ariaBusy = String(Boolean(arriving));
    this.thoughts.hidden = thought === "";
    this.thoughtTitle.textContent = arriving && said === "" ? "Thinking …" : "Thoughts";
    this.thought.textContent = thought;
    showMarkdown(this.said, said);
    this.waiting.hidden = !arriving || answer + thought !== "";
    this.failure.hidden = !failure;
    this.failure.textContent = failure ?? "";
    this.copy.hidden = Boolean(arriving) || said === "";
    this.again.hidden = Boolean(arriving);
    this.again.textContent = answer === "" ? "Send again" : "Regenerate";
    this.showFigures();
  }

  showFigures() {
    const now = performance.now();
    if (this.turn.arriving && now - this.figuresShownAt < CALM) return;
    this.figuresShownAt = now;
    this.figures.textContent = this.turn.figures ? figuresInWords(this.turn.figures) : "";
  }
}

function figuresInWords({ tokens, counted, perSecond, firstAfter, promptTokens, cachedTokens, end }) {
  const cached = cachedTokens > 0 ? ` (${cachedTokens} cached)` : "";
  const parts = [
    tokens > 0 && `${counted ? "" : "about "}${tokens} ${tokens === 1 ? "token" : "tokens"}`,
    perSecond && `${rate(perSecond)} tokens/s`,
    firstAfter !== null && `first after ${seconds(firstAfter)}`,
    promptTokens && `prompt ${promptTokens}${cached}`,
    end,
  ];
  return parts.filter(Boolean).join(" · ");
}
