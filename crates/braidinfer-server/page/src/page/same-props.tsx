// Components that are drawn again only when what they are given has changed.

import { Component, type ComponentType } from "preact";

export function unlessSame<Props extends object>(Drawn: ComponentType<Props>): ComponentType<Props> {
  return class extends Component<Props> {
    override shouldComponentUpdate(next: Props): boolean {
      const names = new Set([...Object.keys(next), ...Object.keys(this.props)]) as Set<keyof Props>;
      return [...names].some((name) => next[name] !== (this.props as Props)[name]);
    }

    override render() {
      return <Drawn {...(this.props as Props)} />;
    }
  };
}
