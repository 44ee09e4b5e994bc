"use strict";
// Renews what is going on: 205 means that the page around it has changed too, 204 that nothing has.
for (const panel of document.querySelectorAll("[data-live]")) {
  const renew = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(panel.dataset.live);
        if (answer.status === 205 || answer.redirected) return location.reload();
        if (answer.status === 200) panel.innerHTML = await answer.text();
      } catch {
        // The console is away, or being started again.
      }
    }
    setTimeout(renew, 2000);
  };
  setTimeout(renew, 1000);
}
