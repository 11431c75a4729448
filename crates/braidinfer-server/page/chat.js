// The conversation: sending, stopping, answering again, and what of it survives a reload.

import { servedModel, streamAnswer, streamContinuation } from "./api.js";
import { keep, recall } from "./memory.js";
import { sampling, systemPrompt } from "./settings.js";
import { TurnView, partsOf } from "./turn.js";

/** Distance from the end, in pixels, at which a reader still counts as being there. */
const NEAR_END = 40;
/** Less time than this between tokens, in seconds, says nothing about a rate. */
const SHORTEST_STREAM = 0.005;

const byId = (id) => document.getElementById(id);

/** New text of an answer. */
const saidIn = (choice) => choice?.delta?.content ?? choice?.text ?? "";
const thoughtIn = (choice) => choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "";

/** Measures one answer while it comes. */
class Stopwatch {
  constructor() {
    this.sent = performance.now();
    this.first = this.last = null;
    this.pieces = 0;
    this.usage = null;
    this.finish = null;
  }

  take(chunk) {
    const choice = chunk.choices?.[0];
    this.usage = chunk.usage ?? this.usage;
    this.finish = choice?.finish_reason ?? this.finish;
    if (!saidIn(choice) && !thoughtIn(choice)) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  figures(stopped = false) {
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const streamed = (this.last - this.first) / 1000;
    return {
      tokens,
      counted: this.usage !== null,
      perSecond: tokens > 1 && streamed > SHORTEST_STREAM ? (tokens - 1) / streamed : null,
      firstAfter: this.first === null ? null : (this.first - this.sent) / 1000,
      promptTokens: this.usage?.prompt_tokens ?? null,
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? 0,
      end: stopped ? "stopped" : this.finish === "length" ? "cut at the limit of tokens" : null,
    };
  }
}

export class Chat {
  /** `showModel(model)` is told who answers. */
  constructor(showModel) {
    this.showModel = showModel;
    this.question = byId("question");
    this.turns = byId("turns");
    this.stopper = null;
    this.follower = new EndFollower(byId("scroller"), this.turns, byId("to-end"));
    this.views = recall("sessionStorage", "turns", []).map((turn) => this.addView(turn));
    this.question.value = recall("sessionStorage", "draft", "");
    this.listen();
    this.fitQuestion();
    this.showState();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.stopper ? this.stop() : this.send();
    });
    this.question.addEventListener("input", () => {
      this.fitQuestion();
      keep("sessionStorage", "draft", this.question.value);
    });
    this.question.addEventListener("keydown", (event) => this.onEnter(event));
    byId("new-chat").addEventListener("click", () => this.startAnew());
    byId("previous-chat").addEventListener("click", () => this.bringBack());
    addEventListener("pagehide", () => this.save());
    addEventListener("resize", () => this.fitQuestion());
  }

  /** Screen keyboards have no Shift+Enter, so there Enter starts a line. */
  onEnter(event) {
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (!sends || matchMedia("(hover: none) and (pointer: coarse)").matches) return;
    event.preventDefault();
    if (!this.stopper) this.send();
  }

  send() {
    const question = this.question.value.trim();
    if (question === "") return;
    this.views.push(this.addView({ question, thought: "", answer: "", figures: null, failure: null }));
    this.question.value = "";
    keep("sessionStorage", "draft", "");
    this.fitQuestion();
    this.answerLast();
  }

  /** Whether there was something to stop. */
  stop() {
    this.stopper?.abort();
    return this.stopper !== null;
  }

  /** Until its first token, an answer that is to be replaced is kept, for there may be none. */
  async answerLast() {
    if (this.stopper) return;
    const view = this.views.at(-1);
    const { thought, answer, figures } = view.turn;
    const asked = { messages: this.messages(), text: this.text() };
    const stopper = (this.stopper = new AbortController());
    Object.assign(view.turn, { thought: "", answer: "", figures: null, failure: null, arriving: true });
    this.showState();
    view.show();
    this.follower.goToEnd();
    announce("Answering");
    await this.read(view, asked, stopper.signal);
    this.stopper = null;
    view.turn.arriving = false;
    if (view.turn.answer === "" && answer !== "") Object.assign(view.turn, { thought, answer, figures });
    view.show();
    this.save();
    this.showState();
    if (!view.turn.failure) announce(partsOf(view.turn).said);
  }

  async read(view, { messages, text }, signal) {
    const { turn } = view;
    let stopwatch = new Stopwatch();
    try {
      const model = await servedModel(signal);
      this.showModel(model);
      stopwatch = new Stopwatch();
      const chunks = model.chats ? streamAnswer(messages, sampling(), signal) : streamContinuation(text, sampling(), signal);
      for await (const chunk of chunks) {
        if (signal.aborted) break;
        stopwatch.take(chunk);
        turn.answer += saidIn(chunk.choices?.[0]);
        turn.thought += thoughtIn(chunk.choices?.[0]);
        turn.figures = stopwatch.figures();
        view.showSoon();
      }
    } catch (error) {
      if (!signal.aborted) turn.failure = error.message;
    }
    turn.figures = stopwatch.figures(signal.aborted);
  }

  /** Questions without an answer are left out: many chat templates want the two to alternate. */
  messages() {
    const answered = this.views.slice(0, -1).filter(({ turn }) => turn.answer !== "");
    const system = systemPrompt();
    return [
      ...(system === "" ? [] : [{ role: "system", content: system }]),
      ...answered.flatMap(({ turn }) => [
        { role: "user", content: turn.question },
        { role: "assistant", content: partsOf(turn).said || turn.answer },
      ]),
      { role: "user", content: this.views.at(-1).turn.question },
    ];
  }

  /** The conversation as one text, which a model without a chat template continues. */
  text() {
    const turns = this.views.map(({ turn: { question, answer } }, at) => (at < this.views.length - 1 ? question + answer : question));
    return [systemPrompt(), ...turns].filter((part) => part !== "").join("\n");
  }

  startAnew() {
    this.stop();
    if (this.views.length > 0) keep("sessionStorage", "previous", this.plainTurns());
    this.replaceTurns([]);
    this.question.focus();
  }

  bringBack() {
    this.replaceTurns(recall("sessionStorage", "previous", []));
    keep("sessionStorage", "previous", null);
    this.showState();
    this.question.focus();
  }

  replaceTurns(turns) {
    this.turns.replaceChildren();
    this.views = turns.map((turn) => this.addView(turn));
    this.save();
    this.showState();
  }

  addView(turn) {
    const view = new TurnView(turn, () => this.answerLast());
    this.turns.append(view.element);
    return view;
  }

  save() {
    keep("sessionStorage", "turns", this.plainTurns());
  }

  plainTurns() {
    const plain = ({ turn: { question, thought, answer, figures, failure } }) => ({ question, thought, answer, figures, failure });
    return this.views.map(plain);
  }

  showState() {
    const isEmpty = this.views.length === 0;
    byId("empty").hidden = !isEmpty;
    byId("previous-chat").hidden = !isEmpty || recall("sessionStorage", "previous", null) === null;
    byId("send").textContent = this.stopper ? "Stop" : "Send";
    document.body.classList.toggle("answering", this.stopper !== null);
  }

  fitQuestion() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
  }
}

/** Keeps the end in sight while content grows, unless the reader has scrolled away from it. */
class EndFollower {
  constructor(scroller, content, button) {
    this.scroller = scroller;
    this.button = button;
    this.follows = true;
    this.lastTop = 0;
    scroller.addEventListener("scroll", () => this.onScroll());
    button.addEventListener("click", () => this.goToEnd());
    const observer = new ResizeObserver(() => this.follows && this.goToEnd());
    observer.observe(scroller);
    observer.observe(content);
  }

  /** Only going up leaves the end: content that grows may also put it out of reach for a moment. */
  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) this.follows = true;
    else if (scrollTop < this.lastTop) this.follows = false;
    this.lastTop = scrollTop;
    this.button.hidden = this.follows;
  }

  goToEnd() {
    this.follows = true;
    this.button.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

/** For screen readers: once for each answer, not for each token. What was said is soon gone, so that nobody reads it twice. */
function announce(text) {
  const region = byId("announcement");
  region.textContent = text;
  setTimeout(() => region.textContent === text && (region.textContent = ""), 5000);
}
