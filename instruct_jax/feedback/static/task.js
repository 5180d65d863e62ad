// The form of a task: one output at a time, the ranking board, the clock, drafts that outlive the page, and sending.
// Without this script the form still works: all parts are on one page, and ranks are chosen from lists.

const form = document.querySelector("form.task");
if (form) {
  const problem = document.getElementById("problem");
  const steps = [...form.querySelectorAll(".step")];
  const cards = [...form.querySelectorAll(".card")];
  const columns = [...form.querySelectorAll(".column")];
  let step = 0;
  let seconds = 0;
  let stored = false;

  // One step at a time; its heading takes the focus, so that the keyboard goes on from there.
  const show = (wanted, focus) => {
    step = Math.min(Math.max(wanted, 0), steps.length - 1);
    steps.forEach((part, at) => (part.hidden = at !== step));
    form.querySelectorAll(".steps button").forEach((button, at) =>
      at === step ? button.setAttribute("aria-current", "step") : button.removeAttribute("aria-current"));
    if (focus) steps[step].querySelector("h2").focus();
  };
  if (steps.length) {
    form.querySelectorAll(".steps, .walk, .scripted, .column").forEach((part) => (part.hidden = false));
    form.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-step]");
      if (button) show(Number(button.dataset.step), true);
    });
  }

  // The board.  The list in a card is what counts; a card lies in the column that its list names.
  const place = (card) => {
    const select = card.querySelector("select");
    columns.find((column) => column.dataset.rank === select.value).append(card);
  };
  const move = (card, rank) => {
    const select = card.querySelector("select");
    const focused = card.contains(document.activeElement) ? document.activeElement : null;
    select.value = rank;
    place(card);
    if (focused) focused.focus();  // moving an element takes the focus away
    const column = card.closest(".column").querySelector("h3").textContent;
    document.getElementById("moved").textContent = `${card.querySelector("h4").textContent} is now in: ${column}`;
    save();
  };
  const key = (event) => {
    const card = event.currentTarget;
    if (event.target !== card || event.altKey || event.ctrlKey || event.metaKey) return;
    const now = Number(card.querySelector("select").value);
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1 }[event.key]
      ?? (/^[0-9]$/.test(event.key) ? Number(event.key) : NaN);
    if (!(next >= 0 && next < columns.length)) return;
    event.preventDefault();
    move(card, next === 0 ? "" : String(next));
  };
  const drag = (event) => {
    if (event.button !== 0) return;
    const handle = event.currentTarget;
    const card = handle.closest(".card");
    const under = (e) => document.elementFromPoint(e.clientX, e.clientY)?.closest(".column");
    const follow = (e) => {
      card.style.transform = `translate(${e.pageX - event.pageX}px, ${e.pageY - event.pageY}px)`;
      columns.forEach((column) => column.classList.toggle("over", column === under(e)));
    };
    const drop = (e) => {
      const column = e.type === "pointerup" ? under(e) : null;
      card.classList.remove("held");
      card.style.transform = "";
      columns.forEach((each) => each.classList.remove("over"));
      ["pointermove", "pointerup", "pointercancel"].forEach((name) => handle.removeEventListener(name, name === "pointermove" ? follow : drop));
      if (column) move(card, column.dataset.rank);
    };
    event.preventDefault();
    card.classList.add("held");
    handle.setPointerCapture(event.pointerId);
    ["pointermove", "pointerup", "pointercancel"].forEach((name) => handle.addEventListener(name, name === "pointermove" ? follow : drop));
  };
  for (const card of cards) {
    card.addEventListener("keydown", key);
    card.querySelector("h4").addEventListener("pointerdown", drag);
    card.querySelector("select").addEventListener("change", (event) => move(card, event.target.value));
  }

  // Drafts: what is not stored yet outlives a reload, a crash and a log-out, in this browser only.
  const secret = ["key", "form", "seconds"];
  const fields = () => [...form.elements].filter((field) => field.name && !secret.includes(field.name) && field.type !== "submit");
  const ticked = (field) => field.type === "radio" || field.type === "checkbox";
  const called = (field) => (ticked(field) ? `${field.name}=${field.value}` : field.name);
  const save = () => {
    if (stored) return;
    const values = Object.fromEntries(fields().map((field) => [called(field), ticked(field) ? field.checked : field.value]));
    try {
      localStorage.setItem(form.dataset.draft, JSON.stringify({ values, step, seconds }));
    } catch {}  // a browser without room or leave: the page works without drafts
  };
  const restore = () => {
    let draft = null;
    try {
      draft = JSON.parse(localStorage.getItem(form.dataset.draft));
    } catch {}
    if (!draft) return;
    ({ step, seconds } = draft);
    for (const field of fields()) {
      const value = draft.values[called(field)];
      if (value !== undefined) field[ticked(field) ? "checked" : "value"] = value;
    }
  };
  const forget = () => {
    try {
      localStorage.removeItem(form.dataset.draft);
    } catch {}
  };

  // Time counts while the page can be seen.
  const clock = document.getElementById("clock");
  const tick = () => (clock.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`);
  setInterval(() => {
    if (document.hidden) return;
    seconds += 1;
    tick();
    if (seconds % 5 === 0) save();
  }, 1000);

  // An answer is stored if and only if the server sends the browser on; any other reply is shown, and the form stays as it is.
  const tell = (text, at) => {
    problem.textContent = text;
    problem.hidden = false;
    if (steps.length && at !== undefined) show(at, false);
    problem.focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    form.elements.seconds.value = seconds;
    save();
    const body = new URLSearchParams(new FormData(form, event.submitter));
    const buttons = [...form.querySelectorAll("button")];
    buttons.forEach((button) => (button.disabled = true));
    try {
      const reply = await fetch(location.href, { method: "POST", body, redirect: "manual" });
      if (reply.type === "opaqueredirect") {
        stored = true;
        forget();
        location.assign("/task");
        return;
      }
      const page = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("problem");
      const at = page?.dataset.at;
      tell(page?.textContent || `Nothing was stored: the server failed (${reply.status}). Send it again.`, at && Number(at));
    } catch {
      tell("Not stored yet, as far as this page knows: the server cannot be reached. Your answer is still here. Send it again.");
    } finally {
      buttons.forEach((button) => (button.disabled = false));
    }
  });

  // A page that the browser kept whole, as for "back", may be of an answer that is stored by now.
  addEventListener("pageshow", (event) => event.persisted && location.reload());

  restore();
  cards.forEach(place);
  form.querySelector(".cards")?.remove();
  if (steps.length) show(problem.hidden ? step : Number(problem.dataset.at), false);
  form.addEventListener("input", save);
  tick();
}
