// A conversation: its turns, and what keeps their end in sight.

import { useEffect, useRef, useState } from "preact/hooks";

import type { Conversation } from "../conversations/conversation";
import { childrenIn, shownBranch } from "../conversations/tree";
import { Icon } from "../page/icon";
import { state, type Run } from "../page/state";
import { attach, Composer } from "./composer";
import { EmptyConversation } from "./empty";
import { TurnView } from "./turn";

/** Distance from the end, in pixels, at which a reader still counts as being there. */
const NEAR_END = 40;

export function Chat({ conversation, run }: { conversation: Conversation; run: Run | undefined }) {
  const [isDropping, setDropping] = useState(false);
  const scroller = useRef<HTMLDivElement>(null);
  const turns = useRef<HTMLDivElement>(null);
  const follower = useFollower(scroller, turns, conversation.id, run !== undefined);
  const children = childrenIn(conversation);
  const branch = shownBranch(conversation, children);
  const models = new Set(branch.flatMap(({ model }) => model ?? []));
  const onDrag = (event: DragEvent) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    setDropping(event.type === "dragover");
    if (event.type === "drop") attach([...event.dataTransfer.files]);
  };
  return (
    <main class={isDropping ? "dropping" : ""} onDragOver={onDrag} onDragLeave={onDrag} onDrop={onDrag}>
      <div id="scroller" ref={scroller} role="region" aria-label="Conversation" tabIndex={0}>
        <div id="turns" ref={turns}>
          {branch.length === 0 && <EmptyConversation conversation={conversation} />}
          {branch.map((turn, at) => {
            const versions = children.get(turn.parent) ?? [];
            return (
              <TurnView
                key={turn.id}
                turn={turn}
                version={versions.indexOf(turn)}
                versions={versions.length}
                isLast={at === branch.length - 1}
                isArriving={run?.turn === turn.id}
                isBusy={run !== undefined}
                isEditing={state.editing === turn.id}
                showsModel={models.size > 1}
              />
            );
          })}
        </div>
      </div>
      <div class="composer-frame">
        {!follower.follows && (
          <button type="button" id="to-end" aria-label="To the latest answer" title="To the latest answer" onClick={follower.goToEnd}>
            <Icon name="toEnd" />
          </button>
        )}
        <Composer key={conversation.id} conversation={conversation} isAnswering={run !== undefined} />
      </div>
    </main>
  );
}

/** Keeps the end in sight while content grows, unless the reader has scrolled away from it. */
function useFollower(scroller: { current: HTMLElement | null }, content: { current: HTMLElement | null }, conversation: string, isAnswering: boolean) {
  const [follows, setFollows] = useState(true);
  const current = useRef({ follows: true, lastTop: 0 });
  const put = (value: boolean) => {
    current.current.follows = value;
    setFollows(value);
  };
  const goToEnd = () => {
    put(true);
    if (scroller.current) scroller.current.scrollTop = scroller.current.scrollHeight;
  };
  useEffect(() => {
    const element = scroller.current;
    if (!element || !content.current) return;
    // Only going up leaves the end: content that grows may also put it out of reach for a moment.
    const onScroll = () => {
      const { scrollTop, scrollHeight, clientHeight } = element;
      if (scrollHeight - scrollTop - clientHeight < NEAR_END) put(true);
      else if (scrollTop < current.current.lastTop) put(false);
      current.current.lastTop = scrollTop;
    };
    const observer = new ResizeObserver(() => current.current.follows && goToEnd());
    observer.observe(element);
    observer.observe(content.current);
    element.addEventListener("scroll", onScroll);
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", onScroll);
    };
  }, []);
  useEffect(goToEnd, [conversation]);
  useEffect(() => {
    if (isAnswering) goToEnd();
  }, [isAnswering]);
  return { follows, goToEnd };
}
