// The chat's line for what went wrong, or for a place in the queue.

export function mount(element, { props, watch }) {
  const line = element.querySelector("p");
  watch("value", () => {
    line.textContent = props.value ?? "";
    line.hidden = !props.value;
  });
}
