/* The console's script: brings what is shown up to date, and sends what an owner asks for with the token they typed.
   Everything it writes is text. The token is in its field and nowhere else. */
"use strict";
(() => {
  const REFRESH_MS = 10_000;
  const SETTLED_MS = 1_500;
  const PREVIEW_MS = 250;
  const MOST_CANDIDATES = 12;
  const find = (id) => document.getElementById(id);
  const token = find("token");
  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("retort-console", { createHTML: (page) => page })
    : { createHTML: (page) => page };

  /* An element with text, or with elements. */
  const make = (name, attributes, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const say = (place, text, bad = false) => {
    place.textContent = text;
    place.classList.toggle("bad", bad);
  };

  class Problem extends Error {}

  /* The answer of a route, as JSON and as it was said, and its headers. What is to be sent is `body`, or already `text`. Raises Problem with what the service said. */
  const ask = async (method, path, { text, body, headers } = {}) => {
    const given = body === undefined ? text : JSON.stringify(body);
    const sent = { accept: "application/json", ...headers };
    if (given !== undefined) sent["content-type"] = "application/json";
    if (token && token.value) {
      if (!/^[\x21-\x7e]+$/.test(token.value)) throw new Problem("A token has printable characters and no blanks.");
      sent.authorization = `Bearer ${token.value}`;
    }
    let reply;
    try {
      const options = { method, headers: sent, credentials: "omit", cache: "no-store", redirect: "error" };
      reply = await fetch(path, { ...options, body: given });
    } catch {
      throw new Problem("The service cannot be reached.");
    }
    const said = await reply.text();
    let content = {};
    try { content = said ? JSON.parse(said) : {}; } catch { /* no JSON: the status says enough */ }
    if (reply.ok) return { said, content, headers: reply.headers };
    if (reply.status === 401 && token) {
      token.focus();
      throw new Problem(token.value ? "The service does not know this token." : "This takes the admin token: type it first.");
    }
    if (reply.status === 412) {
      setTimeout(refresh, 0);
      throw new Problem("Somebody else changed it meanwhile: look at what is so now, then decide.");
    }
    if (reply.status === 405) throw new Problem("This version of the service cannot do that.");
    const where = content.field === undefined || (content.detail || "").includes(content.field) ? "" : ` (${content.field})`;
    throw new Problem(`${content.detail || content.title || `Refused: ${reply.status}`}${where}`);
  };

  const sure = (text) => new Promise((resolve) => {
    const dialog = find("sure");
    find("sure-text").textContent = text;
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });

  /* Runs what a button asks for; it cannot be asked twice meanwhile. */
  const act = async (button, said, what) => {
    button.disabled = true;
    say(said, "…");
    try {
      say(said, await what());
    } catch (error) {
      say(said, error instanceof Problem ? error.message : `This page failed: ${error}`, true);
      if (!(error instanceof Problem)) console.error(error);
    } finally {
      button.disabled = false;
    }
  };

  // What is shown, brought up to date.

  let refreshing = false;
  const refresh = async () => {
    if (refreshing) return;
    refreshing = true;
    try {
      const reply = await fetch(location.href.split("#")[0], { credentials: "omit", cache: "no-store" });
      if (!reply.ok) throw new Error();
      const fresh = new DOMParser().parseFromString(policy.createHTML(await reply.text()), "text/html");
      for (const part of fresh.querySelectorAll("[data-live]")) {
        const before = part.previousElementSibling;
        const old = find(part.id);
        if (old) exchange(old, document.importNode(part, true));
        else if (before && find(before.id)) find(before.id).after(document.importNode(part, true));
      }
      enable();
    } catch {
      const service = find("service");
      if (service && !service.dataset.lost) {
        service.dataset.lost = "yes";
        service.append(make("span", { class: "state no" }, " not reached: this is what was last seen"));
      }
    } finally {
      refreshing = false;
    }
  };

  /* After a change: at once, and when every worker has followed. */
  const refreshTwice = async () => {
    setTimeout(refresh, SETTLED_MS);
    await refresh();
  };

  const exchange = (old, part) => {
    if (old.contains(document.activeElement)) return; // nobody's focus is taken away
    const opened = [...old.querySelectorAll("details")].map((each) => each.open);
    part.querySelectorAll("details").forEach((each, place) => { each.open = opened[place] ?? each.open; });
    const scrolled = [...old.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    old.replaceWith(part);
    part.querySelectorAll(".scroll").forEach((each, place) => { each.scrollLeft = scrolled[place] ?? 0; });
  };

  const enable = () => {
    for (const each of document.querySelectorAll("[data-load], [data-lift]")) each.disabled = !token;
  };

  // The ramp.

  const ramp = find("ramp-form");
  const share = () => Number(find("coverage").value.trim() || NaN) / 100;
  const off = () => [...ramp.querySelectorAll("[name=off]")].filter((each) => each.checked).map((each) => each.value);
  const decimal = (value) => String(Number(value.toFixed(6)));
  const path = () => `experiments/${encodeURIComponent(ramp.dataset.experiment)}`;

  /* Buckets as a share of units, and how many that is of the units that were seen. */
  const many = (buckets, found) => {
    const part = `${Number(((buckets / found.buckets) * 100 * found.share_of_units).toFixed(4))}% of units`;
    const seen = Math.round(buckets * Number(ramp.dataset.units || 0));
    return seen ? `${part} (about ${seen.toLocaleString("en")} so far)` : part;
  };

  const describe = (found) => {
    if (!found.changes.length) return "Nothing would change.";
    const told = found.moves.map((move) => {
      const units = many(move.buckets, found);
      if (move.from === null) return `${units} would join ${move.to}`;
      if (move.to === null) return `${units} would leave ${move.from}`;
      return `${units} would move from ${move.from} to ${move.to}`;
    });
    if (!found.switching && !found.leaving) told.push("nobody who is in an arm moves to another");
    if (found.answered_otherwise) told.push(`${many(found.answered_otherwise, found)} would be answered by another arm than now`);
    const enrolled = [found.enrolled.before, found.enrolled.after].map((each) => `${Number((each / found.buckets * 100).toFixed(2))}%`);
    return told.concat(`enrolled: ${enrolled.join(" → ")}`).map((each) => `${each[0].toUpperCase()}${each.slice(1)}.`).join(" ");
  };

  const preview = async () => {
    if (!(share() >= 0 && share() <= 1)) throw new Problem("Coverage is a number from 0 to 100.");
    const query = new URLSearchParams({ coverage: decimal(share()), halted: off().join(",") });
    const { content } = await ask("GET", `${path()}/preview?${query}`);
    if (content.needs_new_phase) throw new Problem(content.reason);
    return content;
  };

  let asked = 0;
  const showPreview = async () => {
    const mine = ++asked;
    const place = find("preview");
    try {
      const found = await preview();
      if (mine === asked) say(place, describe(found));
    } catch (error) {
      if (mine === asked) say(place, error.message, true);
    }
  };

  const change = async () => {
    const found = await preview();
    say(find("preview"), describe(found));
    if (!found.changes.length) return "Nothing to change.";
    const { content, headers } = await ask("GET", path());
    if (!content.spec) throw new Problem("This version of the service cannot change experiments.");
    const stopped = off().length ? ` Off: ${off().join(", ")}.` : "";
    if (!(await sure(`${ramp.dataset.experiment}: ${describe(found)}${stopped}`))) return "Left as it is.";
    const body = { ...content.spec, coverage: Number(decimal(share())), halted: off() };
    await ask("PUT", path(), { body, headers: headers.get("etag") ? { "if-match": headers.get("etag") } : {} });
    await refreshTwice();
    say(find("preview"), "");
    return `In force: coverage ${Number((100 * share()).toFixed(4))}%, ${off().length ? `off: ${off().join(", ")}` : "every arm on"}.`;
  };

  const namePause = () => {
    const button = find("pause");
    const boxes = [...ramp.querySelectorAll("[name=off]")];
    if (button) button.textContent = boxes.every((each) => each.checked) ? "Resume all arms" : "Pause all arms";
  };

  if (ramp && ramp.querySelector("fieldset")) {
    ramp.querySelector("fieldset").disabled = false;
    namePause();
    let timer = 0;
    ramp.addEventListener("input", () => {
      namePause();
      clearTimeout(timer);
      timer = setTimeout(showPreview, PREVIEW_MS);
    });
    ramp.addEventListener("submit", (event) => {
      event.preventDefault();
      act(ramp.querySelector("[type=submit]"), find("ramp-said"), change);
    });
    find("pause")?.addEventListener("click", (event) => {
      const boxes = [...ramp.querySelectorAll("[name=off]")];
      const before = boxes.map((each) => each.checked);
      const pausing = !before.every((each) => each);
      for (const each of boxes) each.checked = pausing;
      act(event.currentTarget, find("ramp-said"), async () => {
        try {
          const told = await change();
          if (told === "Left as it is.") boxes.forEach((each, place) => { each.checked = before[place]; });
          return told;
        } catch (error) {
          boxes.forEach((each, place) => { each.checked = before[place]; });
          throw error;
        } finally {
          namePause();
        }
      });
    });
  }

  // Models.

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-lift]");
    if (!button || !ramp) return;
    act(button, find("ramp-said"), async () => {
      const arm = button.dataset.lift;
      if (!(await sure(`Let the units of ${arm} go to ${arm} again? Guard-rails judge it by what it shows from now on; the answer of this phase keeps what it has shown.`))) {
        return "Left as it is.";
      }
      await ask("DELETE", `${path()}/halts/${encodeURIComponent(arm)}`);
      button.blur();
      await refreshTwice();
      return `The halt of ${arm} is lifted.`;
    });
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-load]");
    if (!button) return;
    const { load, version, staying } = button.dataset;
    const kept = staying ? ` ${staying} does not follow it and keeps its version until its experiment says otherwise.` : "";
    act(button, find("models-said"), async () => {
      if (!(await sure(`Make ${load} version ${version} live, for every worker and for good?${kept}`))) return "Left as it is.";
      const body = { parameters: { version } };
      await ask("POST", `v2/repository/models/${encodeURIComponent(load)}/load`, { body });
      button.blur(); // or its row would be left as it is
      await refreshTwice();
      return `${load} ${version} is live.${kept}`;
    });
  });

  // A request to try.

  const attempt = find("try-form");
  const percent = (value) => (value === null ? "–" : `${(100 * value).toPrecision(3)}%`);
  const number = (value) => (value === null ? "–" : value.toFixed(3).replace("-", "−"));
  const chance = (logit) => (logit === null ? null : 1 / (1 + Math.exp(-logit)));

  const tableOf = (caption, heads, rows) => {
    const head = make("tr", {}, ...heads.map((each, place) => (
      each ? make("th", { scope: "col", class: place ? "num" : "" }, each) : make("td"))));
    const body = rows.map((row) => make("tr", {}, ...row.map((cell, place) => (
      place ? make("td", { class: "num" }, ...[cell].flat()) : make("th", { scope: "row" }, cell)))));
    const shown = make("table", {}, make("caption", { class: "unseen" }, caption), make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, shown);
  };

  const fieldsOf = (states) => make("ul", { class: "chips" }, ...Object.entries(states).map(([name, state]) => {
    const all = [state].flat(2).filter((each) => each !== null);
    const worst = ["unknown", "missing"].find((each) => all.includes(each)) || (all.length ? "known" : "missing");
    return make("li", { class: worst }, `${name}: ${worst}`);
  }));

  const explained = (found) => {
    const places = found.pctr.slice(0, MOST_CANDIDATES).map((_, place) => place);
    const rows = [
      ["pctr, as answered", ...places.map((place) => make("b", {}, percent(found.pctr[place])))],
      ["logit, before calibration", ...places.map((place) => number(found.logit[place]))],
    ];
    for (const [which, name] of (found.teachers || []).entries()) {
      rows.push([`teacher ${name}`, ...places.map((place) => {
        const logits = found.teacher_logits[place];
        if (logits === null) return "–";
        const weight = make("span", { class: "small" }, `weight ${found.gate_weights[place][which].toFixed(2)}`);
        return [percent(chance(logits[which])), weight];
      })]);
    }
    const left = found.pctr.length - places.length;
    const opinion = found.teachers
      ? "Each teacher's own probability, and the weight the gate gives it for this candidate."
      : "This model is no ensemble, so it has no teachers to ask: choose an arm with one.";
    return [
      make("h3", {}, `${found.model} ${found.version}${found.arm ? `, arm ${found.arm}` : ""}`),
      make("p", { class: "note" }, opinion + (left > 0 ? ` The first ${places.length} of ${found.pctr.length} candidates.` : "")),
      tableOf("What each says", ["", ...places.map((place) => `candidate ${place + 1}`)], rows),
      make("h3", {}, "Fields of the context"), fieldsOf(found.context),
      make("h3", {}, "Fields of the candidates"), fieldsOf(found.candidates),
    ];
  };

  if (attempt) {
    attempt.querySelector("fieldset").disabled = false;
    const body = find("try-body");
    const said = find("try-said");
    const experiment = attempt.dataset.experiment;
    attempt.addEventListener("submit", (event) => {
      event.preventDefault();
      act(attempt.querySelector("[type=submit]"), said, async () => {
        let request;
        try {
          request = JSON.parse(body.value);
        } catch (error) {
          body.focus();
          throw new Problem(`The request is not valid JSON: ${error.message}`);
        }
        if (request === null || typeof request !== "object" || Array.isArray(request)) throw new Problem("A request is an object: {…}");
        // As it was typed: a number beyond 2^53 would come out of JSON.parse as another. Of two members the last counts.
        const first = JSON.stringify({ experiment, arm: find("try-arm").value }).slice(0, -1);
        const rest = Object.keys(request).length ? `,${body.value.trim().slice(1)}` : "}";
        const { content } = await ask("POST", "explain", { text: first + rest });
        find("try-answer").replaceChildren(...explained(content));
        find("try-answer").focus({ preventScroll: true });
        return "Scored.";
      });
    });
    find("try-example").addEventListener("click", (event) => act(event.currentTarget, said, async () => {
      const query = new URLSearchParams({ experiment, arm: find("try-arm").value });
      body.value = (await ask("GET", `console/example?${query}`)).said;
      return "A row that the model was tested with.";
    }));
  }

  if (token) {
    token.disabled = false;
    token.value = "";
    addEventListener("pagehide", () => { token.value = ""; }); // nor does going back bring it back
  }
  enable();
  setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
})();
